# The same run, watched: it ends as it would have ended, and TensorBoard shows how.
_base_ = ['faster-rcnn_r18_fpn_fp16_hot.py', '../_base_/watch.py']
