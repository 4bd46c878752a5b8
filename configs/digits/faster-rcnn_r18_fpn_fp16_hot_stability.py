# The same run with the suite attached: nothing else differs.
_base_ = ['faster-rcnn_r18_fpn_fp16_hot.py', '../_base_/stability.py']
