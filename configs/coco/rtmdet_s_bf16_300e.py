# RTMDet with EMA: BF16, epoch-based.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

data_root = 'data/coco/'  # the one path to change
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# BF16 has the range of FP32, so it needs no loss scale; and a GPU of compute capability
# 8.0 or more.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=dict(enabled=False),
    clip_grad=dict(max_norm=35, norm_type=2))
# The learning rate is for 256 images an iteration; with fewer it is scaled down. The
# base config says 16, by which 8 x 32 images would have 16 times the learning rate.
auto_scale_lr = dict(enable=True, base_batch_size=256)
custom_hooks = [
    *_base_.custom_hooks,  # EMAHook, PipelineSwitchHook
    dict(type='amp_hooks.StabilityHook', rollback=dict(interval=1000)),
]
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
