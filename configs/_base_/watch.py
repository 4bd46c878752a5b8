# Everything that only looks: training is bit for bit what it would be without it.
# To see what a run of yours does before you let anything act on it.
custom_hooks = [
    dict(
        type='amp_hooks.StabilityHook',
        step_guard=None,
        forensics=None,
        bad_batch=None,
        head_clamp=None,
        rollback=None,
        precision_fallback=None),
]
