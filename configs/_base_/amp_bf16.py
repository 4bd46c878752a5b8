# Mixed precision in BF16: the range of FP32, so there is no loss scale. Needs a GPU of
# compute capability 8.0 or more (Ampere), and a detector that trains without mmcv's
# CUDA RoIAlign, focal loss and deformable attention, which have no BF16 (mmcv#3061,
# #2878), and on a CPU without its NMS: RTMDet and YOLOX.
#
# Inherit it and give an optimizer:
#   _base_ = ['.../amp_bf16.py']
#   optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.0001))

# By what torch sees and what mmcv's operators were built for. Not an import statement:
# MMEngine would take the file for a lazy config.
_device = __import__('amp_hooks.precision.device', fromlist=['trains_on_cpu'])

optim_wrapper = dict(
    type='amp_hooks.CpuAmpOptimWrapper' if _device.trains_on_cpu() else 'AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=dict(enabled=False),
    clip_grad=dict(max_norm=35, norm_type=2))
