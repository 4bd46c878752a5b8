"""The samples of a data batch, whatever its layout."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, Dict, List

from mmengine.structures import BaseDataElement
from torch import Tensor

from .of_others import attribute
from .packed import metas_of, packed_samples, table_of
from .tensors import named_tensors

_OBJECTS = ("gt_instances", "gt_instance_labels")
# What a sample consists of, by branch: its data sample, and its part of each input.
Sample = Dict[str, List[Any]]


def image_of(sample: Any) -> tuple[str, Any] | None:
    """Name and id of the image that a data sample belongs to.

    The name is its path (``img_path``), else made of its id (``img_id``, of mmdet, or
    ``sample_idx``); ``None`` if it has neither.
    """
    get = sample.get if isinstance(sample, dict) else partial(attribute, sample)
    path, image_id = get("img_path", None), None
    for key in ("img_id", "sample_idx"):
        if image_id is None:
            image_id = get(key, None)
    if isinstance(path, (str, os.PathLike)):
        return str(path), image_id
    return None if image_id is None else (f"sample {image_id}", image_id)


def plain_id(image_id: Any) -> Any:
    """An id as JSON and checkpoints can hold it."""
    if image_id is None or type(image_id) in (int, str):
        return image_id
    try:
        return int(image_id)  # numpy's, as of COCO's annotations
    except (TypeError, ValueError):
        return str(image_id)


class BatchView:
    """Looks into the batch of a training iteration, and can exchange its samples.

    ``inputs`` and ``data_samples`` are lists over the samples, or stacked tensors; or
    dicts of them by branch, as in semi-supervised training, where a branch has ``None``
    in the place of samples that it does not use. Of a batch with one table of boxes
    the images are named, if it names them, and not exchanged.

    Args:
        batch: As the training loop passes it to the hooks and to the model.
    """

    def __init__(self, batch: Any) -> None:
        self._branches = dict(_branches(batch))

    def images(self) -> dict[str, Any]:
        """The id of each image by its name; empty if the batch names none."""
        return {name: image_id for _, _, name, image_id in self._places()}

    def branches(self, name: str) -> tuple[str, ...]:
        """Branches that the image is in."""
        return tuple(dict.fromkeys(b for b, _, n, _ in self._places() if n == name))

    def copy(self, name: str) -> Sample:
        """A copy of the image's first sample in each branch."""
        sample: Sample = {}
        for branch, i, other, _ in self._places():
            if other == name and branch not in sample:
                columns = self._branches[branch]
                sample[branch] = [_copy(column[i]) for column in columns]
        return sample

    def replace(self, name: str, sample: Sample) -> bool:
        """Put a sample in every place of the image; ``False`` if it does not fit."""
        places = [(b, i) for b, i, other, _ in self._places() if other == name]
        for branch, _ in places:
            columns, values = self._branches[branch], sample.get(branch, [])
            fits = [_fits(column, value) for column, value in zip(columns, values)]
            if not len(values) == len(columns) > 1 or not all(fits):
                return False
        for branch, i in places:
            for column, value in zip(self._branches[branch], sample[branch]):
                column[i] = _copy(value)  # no two samples of a batch share anything
        return True

    def _places(self) -> Iterator[tuple[str, int, str, Any]]:
        for branch, (samples, *_) in self._branches.items():
            for i, sample in enumerate(samples):
                if image := image_of(sample):
                    yield branch, i, *image


class Contents:
    """What a batch consists of at a time, by reference.

    Containers and data samples are noted, not tensors: what is written into one of
    those stays written.
    """

    def __init__(self, tree: Any) -> None:
        self._undo: list[tuple[Any, Any]] = []
        self._note(tree)

    def restore(self) -> None:
        """Let every container and data sample hold what it held then."""
        for thing, content in self._undo:
            thing.clear()
            if isinstance(thing, list):
                thing.extend(content)
            else:
                thing.update(content)

    def _note(self, tree: Any) -> None:
        if isinstance(tree, tuple):
            for value in tree:
                self._note(value)
            return
        if isinstance(tree, BaseDataElement) or has_tensor(tree):
            tree = vars(tree)  # which holds the fields and sets of their names
        if type(tree) not in (list, dict, set):
            return
        self._undo.append((tree, tree.copy()))
        if not isinstance(tree, set):
            values = tree.values() if isinstance(tree, dict) else tree
            for value in list(values):
                self._note(value)


def data_samples(tree: Any) -> Iterator[BaseDataElement]:
    """Every data sample in a batch, those of several branches and of video frames.

    Of a batch whose boxes lie in one table, what stands for them.
    """
    if packed := packed_samples(tree):
        yield from packed
        return
    if isinstance(tree, dict):
        tree = list(tree.values())
    frames = attribute(tree, "video_data_samples", tree)
    if isinstance(frames, (list, tuple)):
        for value in frames:
            yield from data_samples(value)
    elif isinstance(tree, BaseDataElement):
        yield tree


def instances_of(sample: Any) -> tuple[str, Any]:
    """The field of a data sample in which its ground-truth boxes lie, and what it has.

    MMPose leaves the annotations in ``gt_instances``, as arrays; what is trained on
    lies in ``gt_instance_labels``.
    """
    fields = [(name, attribute(sample, name)) for name in _OBJECTS]
    for name, instances in fields:
        if _tensor_of(attribute(instances, "bboxes")) is not None:
            return name, instances
    return fields[0]


def boxes_of(sample: Any) -> tuple[Any, Tensor | None]:
    """The ground-truth boxes of a data sample: as they are, and as a tensor."""
    boxes: Any = attribute(instances_of(sample)[1], "bboxes")
    return boxes, _tensor_of(boxes)


def _tensor_of(boxes: Any) -> Tensor | None:
    tensor = attribute(boxes, "tensor", boxes)  # mmdet's box types, or plain
    return tensor if isinstance(tensor, Tensor) and tensor.dim() > 1 else None


def image_size(sample: Any) -> tuple[int, int] | None:
    """Height and width of a data sample's image, as augmentation left it."""
    shape = attribute(sample, "img_shape")
    return None if shape is None else (int(shape[0]), int(shape[1]))


def batch_tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a model is called with, data samples looked into."""
    return named_tensors(tree, prefix, _fields)


def _fields(thing: Any) -> Any:
    if isinstance(thing, BaseDataElement):
        return dict(thing.items())
    return thing.tensor if has_tensor(thing) else ()


def has_tensor(thing: Any) -> bool:
    """Whether it is of mmdet's boxes, or something like them."""
    return isinstance(attribute(thing, "tensor"), Tensor)


def _branches(batch: Any) -> Iterator[tuple[str, list[Any]]]:
    """For each branch its data samples, and beside them its inputs.

    Without the inputs, if their layout is not known.
    """
    if not isinstance(batch, dict):
        return
    samples, inputs = batch.get("data_samples"), batch.get("inputs")
    if table_of(batch) is not None:
        yield "", [metas_of(batch)]
        return
    if not isinstance(samples, dict):
        samples, inputs = {"": samples}, {"": inputs}
    for branch, column in samples.items():
        if isinstance(column, (list, tuple)):
            beside = inputs.get(branch) if isinstance(inputs, dict) else None
            parts = list(_columns(beside))
            known = all(_is_by_sample(part, len(column)) for part in parts)
            yield branch, [column, *(parts if known else [])]


def _is_by_sample(part: Any, samples: int) -> bool:
    """Whether its items are those of the samples, and not of several views of each.

    Where there are as many views as samples a list of stacked tensors may be either.
    """
    if len(part) != samples:
        return False
    stacked = [isinstance(x, Tensor) and x.ndim > 3 and len(x) == samples for x in part]
    return isinstance(part, Tensor) or samples == 1 or not all(stacked)


def _columns(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):  # several modalities
        for value in tree.values():
            yield from _columns(value)
    elif isinstance(tree, (list, tuple)) or isinstance(tree, Tensor) and tree.ndim:
        yield tree


def _copy(value: Any) -> Any:
    # deepcopy would copy all of the batch that a stacked tensor's row is a view of.
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _fits(column: Any, value: Any) -> bool:
    if isinstance(column, Tensor):
        return column.shape[1:] == value.shape and column.dtype == value.dtype
    return isinstance(column, list)
