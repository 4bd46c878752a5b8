# Everything that keeps the run alive. Inherit it beside any config that has no
# custom_hooks of its own; otherwise add the one entry to your list.
#
# An argument for each member: boxes, loss_scale, cls_score, grad_norm, step_guard,
# forensics, bad_batch, head_clamp, health, rollback, precision_fallback, preflight,
# panel. A dict holds the arguments of that hook, None leaves it out:
#   dict(type='amp_hooks.StabilityHook',
#        rollback=dict(interval=1000, max_rollbacks=5),
#        step_guard=dict(hysteresis=2),
#        head_clamp=None)
custom_hooks = [
    dict(type='amp_hooks.StabilityHook', rollback=dict(interval=200)),
]
