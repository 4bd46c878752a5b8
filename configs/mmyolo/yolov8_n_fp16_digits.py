# The same on the digits of scripts/make_digits.py: learns on a CPU, from scratch. On a
# machine without an accelerator the FP16 arithmetic is rehearsed.
_base_ = 'mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py'

# By what torch sees and what mmcv's operators were built for.
_device = __import__('amp_hooks.precision.device', fromlist=['trains_on_cpu'])

data_root = 'data/digits/'
metainfo = dict(classes=tuple(str(d) for d in range(10)))
img_scale = (128, 128)
max_epochs = 20
close_mosaic_epochs = 10

model = dict(
    bbox_head=dict(head_module=dict(num_classes=10)),
    train_cfg=dict(assigner=dict(num_classes=10)))

# No flips: a mirrored digit is none. The rest is MMYOLO's.
pre_transform = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
]
last_transform = [
    dict(type='YOLOv5HSVRandomAug'),
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
]
train_pipeline = [
    *pre_transform,
    dict(
        type='Mosaic', img_scale=img_scale, pad_val=114.0, pre_transform=pre_transform),
    dict(
        type='YOLOv5RandomAffine',
        max_rotate_degree=0.0,
        max_shear_degree=0.0,
        scaling_ratio_range=(0.5, 1.5),
        max_aspect_ratio=100,
        border=(-img_scale[0] // 2, -img_scale[1] // 2),
        border_val=(114, 114, 114)),
    *last_transform,
]
train_pipeline_stage2 = [
    *pre_transform,
    dict(type='YOLOv5KeepRatioResize', scale=img_scale),
    dict(
        type='LetterResize',
        scale=img_scale,
        allow_scale_up=True,
        pad_val=dict(img=114.0)),
    *last_transform,
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='YOLOv5KeepRatioResize', scale=img_scale),
    dict(
        type='LetterResize',
        scale=img_scale,
        allow_scale_up=False,
        pad_val=dict(img=114)),
    dict(type='LoadAnnotations', with_bbox=True, _scope_='mmdet'),
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor',
                   'pad_param')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    # Inherited across packages it gets a scope, which it does not take.
    collate_fn=dict(_delete_=True, type='yolov5_collate'),
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=False, min_size=0),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='amp_hooks.CpuAmpOptimWrapper' if _device.trains_on_cpu() else 'AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(batch_size_per_gpu=8))
train_cfg = dict(
    max_epochs=max_epochs, val_interval=5, dynamic_intervals=None)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(max_epochs=max_epochs, warmup_mim_iter=100),
    checkpoint=dict(interval=5, save_best=None))
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.01,
        gamma=100,
        update_buffers=True,
        strict_load=False,
        priority=49),
    dict(
        type='mmdet.PipelineSwitchHook',
        switch_epoch=max_epochs - close_mosaic_epochs,
        switch_pipeline=train_pipeline_stage2),
    dict(type='amp_hooks.StabilityHook', rollback=dict(interval=200)),
]
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
randomness = dict(seed=0)
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
