# MMYOLO's YOLOv8 on COCO: FP16, epoch-based, with its own collate function, learning
# rate hook, EMA and switch of pipelines.
_base_ = 'mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py'

data_root = 'data/coco/'  # the one path to change
train_dataloader = dict(
    # Inherited across packages it gets a scope, which it does not take.
    collate_fn=dict(_delete_=True, type='yolov5_collate'),
    dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# Validation stays in FP32: ValLoop's fp16 is off unless a config asks for it.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
custom_hooks = [
    *_base_.custom_hooks,  # EMAHook, PipelineSwitchHook
    dict(type='amp_hooks.StabilityHook', rollback=dict(interval=1000)),
]
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
