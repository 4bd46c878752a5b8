"""All that takes long to import; see tests/forks.py."""

import mmdet.datasets
import mmdet.engine
import mmdet.evaluation
import mmdet.models
import mmdet.visualization  # noqa: F401
import torch
import torch._dynamo  # by the first optimizer
import torch.utils.tensorboard

import amp_hooks  # noqa: F401

torch.set_num_threads(1)
