"""What is known to hurt a training run, found in its config before it starts."""

from __future__ import annotations

import sys
from typing import Any, Callable, Iterator, Mapping

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine import private
from ..engine.finding import Finding
from ..engine.messages import warn
from ..engine.paste import Paste
from .classes import classes_string, num_classes
from .facts import Facts
from .learning_rate import auto_scale_base, high_lr, short_warmup
from .of_runner import facts_of_runner
from .old_keys import ignored_keys
from .rules import (
    check_invalid_loss,
    error_if_nonfinite,
    no_clip_grad,
    resume_and_ema,
    static_loss_scale,
    unused_parameters,
    val_fp16,
)

Rule = Callable[[Mapping[str, Any], Facts], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    ignored_keys,
    static_loss_scale,
    no_clip_grad,
    error_if_nonfinite,
    auto_scale_base,
    high_lr,
    short_warmup,
    resume_and_ema,
    val_fp16,
    check_invalid_loss,
    unused_parameters,
    classes_string,
    num_classes,
)


def check_config(runner: Runner) -> list[Finding]:
    """Findings on a runner's config, optimizer wrapper, schedulers and hooks.

    What goes wrong in here is a warning, and costs that rule only.

    Args:
        runner: Complete, as in ``before_train``.
    """
    try:
        cfg, facts = runner.cfg.to_dict(), facts_of_runner(runner)
    except Exception as e:
        warn(f"the config could not be checked: {e!r}")
        return []
    return _apply(cfg, facts, warn)


def check(config: Config, facts: Facts) -> list[Finding]:
    """Findings on a config, with what else is known of the run.

    A rule that fails is left out, with a word on ``stderr``.

    Args:
        config: As for ``Runner.from_cfg``.
        facts: Of a runner, or estimated from the config.
    """
    cfg = config.to_dict()  # without the objects of a pure Python config
    return _apply(cfg, facts, lambda words: print(words, file=sys.stderr))


def lines_of(config: Config) -> Callable[[int, Finding], str]:
    """What to paste of each finding, in the syntax of this config.

    A config that cannot be read as plain data costs this, and no run.
    """
    try:
        return Paste(config.to_dict(), private.is_pure_python(config)).lines
    except Exception as e:
        warn(f"lines to paste are not fitted to the config: {e!r}")
        return Paste({}, pure_python=False).lines


def _apply(
    cfg: Mapping[str, Any], facts: Facts, tell: Callable[[str], None]
) -> list[Finding]:
    found: list[Finding] = []
    for rule in RULES:
        try:
            found += rule(cfg, facts)
        except Exception as e:
            tell(f"the config could not be checked for {rule.__name__}: {e!r}")
    return found
