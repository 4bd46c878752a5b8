"""Images that are bad whenever they come up; a hook that sees what is trained on."""

import torch
from mmengine.hooks import Hook

# Of the defaults those of a flip are missing, which MMDetection 3.0 does not forgive.
META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=META),
]


class InfinitePixels:
    """A transform: the pixels of these images are infinite."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, results):
        if results["img_id"] in self.ids:
            results["img"] = results["img"].astype("float32") + float("inf")
        return results


def with_bad_images(*ids):
    """Options of a config whose data set has such images."""
    bad = dict(type="tests.data.bad_images.InfinitePixels", ids=list(ids))
    pipeline = [*PIPELINE[:-1], bad, PIPELINE[-1]]
    return {"train_dataloader.dataset.pipeline": pipeline}


class Spy(Hook):
    """Image ids of each batch as loaded, and as the model is given them."""

    priority = "HIGHEST"

    def __init__(self, out=None):
        self.out = out
        self.loaded, self.trained, self.finite = {}, {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.loaded[runner.iter] = [s.img_id for s in data_batch["data_samples"]]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained[runner.iter] = [s.img_id for s in data_batch["data_samples"]]
        self.finite[runner.iter] = all(x.isfinite().all() for x in data_batch["inputs"])

    def after_train(self, runner):
        if self.out is not None:
            hooks = {type(hook).__name__: hook for hook in runner.hooks}
            told = dict(
                loaded=self.loaded,
                trained=self.trained,
                suspects=hooks["BadBatchHook"].state(),
                replaced=hooks["BadBatchHook"].replaced,
            )
            torch.save(told, f"{self.out}.{runner.rank}")
