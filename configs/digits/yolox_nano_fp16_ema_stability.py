# YOLOX with what belongs to its family: mosaic, switched off for the last epochs by
# YOLOXModeSwitchHook, objectness beside the classes, and EMA of buffers too. FP16,
# epoch-based.
_base_ = [
    '../_base_/digits.py',
    '../_base_/runtime.py',
    '../_base_/amp.py',
]

norm_cfg = dict(type='BN', momentum=0.03, eps=0.001)
model = dict(
    type='YOLOX',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(
        type='CSPDarknet',
        deepen_factor=0.33,
        widen_factor=0.25,
        norm_cfg=norm_cfg),
    neck=dict(
        type='YOLOXPAFPN',
        in_channels=[64, 128, 256],
        out_channels=64,
        num_csp_blocks=1,
        norm_cfg=norm_cfg),
    bbox_head=dict(
        type='YOLOXHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        norm_cfg=norm_cfg,
        loss_bbox=dict(
            type='IoULoss', mode='square', eps=1e-16, reduction='sum', loss_weight=5.0)),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)))

# No flips: a mirrored digit is none.
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        _delete_=True,
        type='MultiImageMixDataset',
        dataset=dict(
            _base_.train_dataloader.dataset,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
            ]),
        pipeline=[
            dict(type='Mosaic', img_scale=(128, 128), pad_val=114.0),
            dict(
                type='RandomAffine',
                max_rotate_degree=0,
                max_shear_degree=0,
                scaling_ratio_range=(0.5, 1.5),
                border=(-64, -64)),
            dict(type='YOLOXHSVRandomAug'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(
                type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                           'scale_factor')),
        ]))

max_epochs = 14
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=7)
optim_wrapper = dict(
    optimizer=dict(
        type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0005, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0))
param_scheduler = [
    dict(
        type='QuadraticWarmupLR',
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=2,
        end=max_epochs,
        T_max=max_epochs - 2,
        eta_min=0.001,
        convert_to_iter_based=True),
]
default_hooks = dict(
    ema=dict(update_buffers=True, priority=49),
    checkpoint=dict(by_epoch=True, interval=7))
log_processor = dict(by_epoch=True)
custom_hooks = [
    dict(type='YOLOXModeSwitchHook', num_last_epochs=6, priority=48),
    dict(type='SyncNormHook', priority=48),
    dict(type='amp_hooks.StabilityHook', rollback=dict(interval=200)),
]
