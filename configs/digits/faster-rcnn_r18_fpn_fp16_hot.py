# The same detector at a learning rate 15 times too high and without warm-up: FP16
# overflows within a few iterations. No fault is injected.
_base_ = 'faster-rcnn_r18_fpn_fp16.py'

optim_wrapper = dict(optimizer=dict(lr=0.15))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=_base_.max_iters),
]
