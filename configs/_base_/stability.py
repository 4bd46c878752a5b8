# Everything that keeps the run alive. Inherit it beside any config that has no
# custom_hooks of its own; otherwise paste the entries into your list.
custom_hooks = [
    dict(type='amp_hooks.LossScaleMonitorHook'),
    dict(type='amp_hooks.ClsScoreMonitorHook'),
    dict(type='amp_hooks.GradNormMonitorHook'),
    dict(type='amp_hooks.StepGuardHook'),
    dict(type='amp_hooks.HeadClampHook'),
    dict(type='amp_hooks.RollbackHook', interval=200),
    dict(type='amp_hooks.StabilityPanelHook', interval=10),
]
