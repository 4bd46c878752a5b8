"""Exceptions that the suite raises on purpose."""


class TrainingDivergedError(RuntimeError):
    """The run cannot be saved by the configured policy.

    The message says what happened, what was tried, and which checkpoint to use.
    """


class PreflightError(RuntimeError):
    """What the first batch showed will fail; nothing has been trained.

    The message lists what was found, and what to do about it.
    """
