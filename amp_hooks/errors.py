"""Exceptions that the suite raises on purpose."""


class OnPurpose:
    """Marks an exception that is meant to end the run.

    Any other that our code raises while a run goes on is a failure of ours: it is told,
    and the run goes on without the part that failed.
    """


class SetupError(OnPurpose, ValueError):
    """The config, or this run, does not allow what a hook was asked to do.

    The message names the argument, its value and the remedy.
    """


class UnsupportedError(OnPurpose, NotImplementedError):
    """The suite cannot work with a part of this run. The message says what can.

    No TypeError, of which ``Runner.call_hook`` makes another one.
    """


class MissingError(OnPurpose, RuntimeError):
    """torch or MMEngine is not installed, or is too old for the hooks.

    No ImportError, of which MMEngine's registry makes another one.
    """


class NoStepError(OnPurpose, RuntimeError):
    """A training step cannot be taken: the config asks for an error then, or other
    processes would wait for this one for ever.
    """


class NoCheckpointError(OnPurpose, RuntimeError):
    """Training is to be resumed, and no checkpoint can be used.

    The message says of each why.
    """


class UnwritableError(OnPurpose, OSError):
    """A folder cannot be written, found out before training begins."""


class BadBoxesError(OnPurpose, ValueError):
    """A batch has invalid boxes, and the config asks for an error then."""


class TrainingDivergedError(OnPurpose, RuntimeError):
    """The run cannot be saved by the configured policy.

    The message says what happened, what was tried, and which checkpoint to use.
    """


class PreflightError(OnPurpose, RuntimeError):
    """What the first batch showed will fail; nothing has been trained.

    The message lists what was found, and what to do about it.
    """
