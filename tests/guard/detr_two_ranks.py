"""DETR under DDP on two ranks: ``detr_two_ranks.py WORK_DIR``; rank 1 gets NaN once.

Prints for each rank where it ended, whether the weights are those of before in the
iteration that failed, and the iterations that were refused.
"""

import copy
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import mmdet  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from amp_hooks.engine.runtime import Runtime  # noqa: E402

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None
torch.set_num_threads(1)


class NaNImages(Hook):
    """At iteration 2, on rank 1; looks at the weights around it."""

    priority = "LOWEST"
    same = False

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            self.before = copy.deepcopy(runner.model.state_dict())
            if dist.get_rank() == 1:
                data_batch["inputs"] = [torch.full((3, 96, 96), float("nan"))]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 2:
            now = runner.model.state_dict()
            self.same = all(torch.equal(now[k], v) for k, v in self.before.items())


def main():
    register_all_modules()
    path = next(Path(mmdet.__file__).parent.glob(".mim/configs/detr/detr_r18*.py"))
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    torch.manual_seed(0)
    size = [[3, 96, 96]]
    batch = demo_mm_inputs(1, size, num_classes=3, use_box_type=False)
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None)
    runner = Runner(
        model=MODELS.build(cfg.model),
        work_dir=sys.argv[1],
        log_level="ERROR",
        default_scope="mmdet",
        train_dataloader=DataLoader(
            [batch] * 6, batch_size=1, collate_fn=lambda b: copy.deepcopy(b[0])
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-6)),
        custom_hooks=[dict(type="amp_hooks.StepGuardHook")],
        default_hooks=dict(checkpoint=None),
        launcher="pytorch",
        env_cfg=dict(dist_cfg=dict(backend="gloo")),
        cfg=dict(model_wrapper_cfg=dict(wrapper, find_unused_parameters=True)),
    )
    hook = NaNImages()
    runner.register_hook(hook)
    runner.train()
    records = Runtime.of(runner).recorder.records
    refused = [record.iter for record in records if not record.stepped]
    same = "same" if hook.same else "changed"
    text = f"rank {dist.get_rank()} ended at {runner.iter} {same} {refused}"
    sys.stdout.write(text + "\n")  # at once: the ranks share it


main()
