# DINO, of the DETR family: FP16, epoch-based. Its own config clips gradients to 0.1.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

data_root = 'data/coco/'  # the one path to change
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# Not BF16: mmcv's CUDA deformable attention (mmcv#2878) has none.
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
# The learning rate is for 16 images an iteration; with fewer it is scaled down.
auto_scale_lr = dict(enable=True)
custom_hooks = [dict(type='amp_hooks.StabilityHook', rollback=dict(interval=1000))]
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
