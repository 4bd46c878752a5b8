# FCOS, single-stage and dense: BF16, epoch-based. Its own config clips gradients to 35.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

data_root = 'data/coco/'  # the one path to change
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# BF16 has the range of FP32, so it needs no loss scale; and a GPU of compute capability
# 8.0 or more.
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
# The learning rate is for 16 images an iteration; with fewer it is scaled down.
auto_scale_lr = dict(enable=True)
custom_hooks = [dict(type='amp_hooks.StabilityHook', rollback=dict(interval=1000))]
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
