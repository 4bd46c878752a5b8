"""Child registries that make ``type='amp_hooks.X'`` work in any config.

MMEngine imports ``<scope>.registry`` when it meets a scoped type for the first time,
and then the ``locations`` given here. So neither ``custom_imports`` nor a certain
``default_scope`` is needed.
"""

from .engine.installed import check_installed

check_installed()

from mmengine.registry import HOOKS as MMENGINE_HOOKS  # noqa: E402
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS  # noqa: E402
from mmengine.registry import Registry  # noqa: E402

HOOKS = Registry(
    "hook", parent=MMENGINE_HOOKS, scope="amp_hooks", locations=["amp_hooks.hooks"]
)
OPTIM_WRAPPERS = Registry(
    "optim_wrapper",
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope="amp_hooks",
    locations=["amp_hooks.precision.cpu_amp"],
)
