# Mixed precision as MMDetection users switch it on: FP16, dynamic loss scale,
# gradients clipped to a norm of 35. On a machine without an accelerator the FP16
# arithmetic is rehearsed on the CPU.
#
# Inherit it and give an optimizer:
#   _base_ = ['.../amp.py']
#   optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9))

# Not an import statement: MMEngine would take the file for a lazy config.
_device = __import__('mmengine.device', fromlist=['get_device']).get_device()

optim_wrapper = dict(
    type='amp_hooks.CpuAmpOptimWrapper' if _device == 'cpu' else 'AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    clip_grad=dict(max_norm=35, norm_type=2))
