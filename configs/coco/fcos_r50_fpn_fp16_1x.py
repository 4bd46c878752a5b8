# FCOS, single-stage and dense: FP16, epoch-based. Its own config clips gradients to 35.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

data_root = 'data/coco/'  # the one path to change
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# Not BF16: mmcv's CUDA focal loss (mmcv#3061) has none.
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
# The learning rate is for 16 images an iteration; with fewer it is scaled down.
auto_scale_lr = dict(enable=True)
custom_hooks = [dict(type='amp_hooks.StabilityHook', rollback=dict(interval=1000))]
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
