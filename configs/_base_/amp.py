# Mixed precision as MMDetection users switch it on: FP16, dynamic loss scale,
# gradients clipped to a norm of 35. On a machine without an accelerator the FP16
# arithmetic is rehearsed on the CPU.
#
# Inherit it and give an optimizer:
#   _base_ = ['.../amp.py']
#   optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9))

# By what torch sees and what mmcv's operators were built for. Not an import statement:
# MMEngine would take the file for a lazy config.
_device = __import__('amp_hooks.precision.device', fromlist=['trains_on_cpu'])

optim_wrapper = dict(
    type='amp_hooks.CpuAmpOptimWrapper' if _device.trains_on_cpu() else 'AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    clip_grad=dict(max_norm=35, norm_type=2))
