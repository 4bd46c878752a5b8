"""The words in which a run is told not to be healthy."""

from __future__ import annotations


def number(value: float) -> str:
    """As people write it: three digits, no exponent where none is needed."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def loss_words(name: str, loss: float, level: float) -> str:
    """A loss is out of its range."""
    return f"{name} {number(loss)} for {number(level)}"


def start_words(loss: float, level: float) -> str:
    """A loss is above what the untrained model had."""
    return f"loss {number(loss)}, at the start of training {number(level)},"


def since_words(since: int | None) -> str:
    """From when on."""
    return "" if since is None else f" since iteration {since}"


def rate_words(factor: float) -> str:
    """The learning rate jumped about then."""
    return f"; the learning rate rose x{number(factor)} there"


def term_words(name: str, factor: float) -> str:
    """The term that rose most."""
    return f"; {name} rose most (x{number(factor)})"


def metric_words(name: str, value: float, best: float) -> str:
    """A metric that fell to nothing."""
    return f"{name} is {number(value)}, its best was {number(best)}"


def diverged(why: str, missing: str) -> str:
    """That the run has diverged; and what to do where the hook that acts is missing."""
    told = f"the run has diverged. {why}."
    if not missing:
        return told
    return (
        f"{told} Nothing is done about it without {missing}. Go back to a checkpoint "
        "from before that, with a lower learning rate or a longer warm-up."
    )
