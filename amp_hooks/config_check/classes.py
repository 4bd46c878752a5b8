"""Rules on the classes of the data set."""

from __future__ import annotations

import os.path as osp
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..engine.config_values import dig
from ..engine.finding import Finding, source
from .facts import Facts, whole_number

# Whose classes are those of the data set. Those of others are attributes, identities,
# keypoints, things and stuff, an object or none.
_HEADS = (
    *("bbox_head", "mask_head", "panoptic_head", "panoptic_fusion_head"),
    *("query_head", "track_head", "point_head", "mask_iou_head"),
)
_PARTS = ("head_module", "loss_cls")  # of mmyolo's heads; a loss that knows the classes
_AROUND = ("detector", "roi_head")
_THINGS, _STUFF = "num_things_classes", "num_stuff_classes"  # of MaskFormer's kind
_BOTH = f"{_THINGS} + {_STUFF}"
_LOADERS = dict(
    train_dataloader="train on", val_dataloader="validate on", test_dataloader="test on"
)
# Heads whose num_classes is the length of a prompt.
_OPEN = ("GroundingDINO", "GLIP", "VLFusion", "YOLOWorld")


def classes_string(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """``classes=('hole')``: no tuple, but a string, each letter of it a class."""
    for loader, what_for in _LOADERS.items():
        leaves = _leaves(dig(cfg, loader, "dataset"))
        name = next((n for n in map(_string_of, leaves) if n is not None), None)
        if name is None:
            continue
        right = dict(metainfo=dict(classes=(name,)))
        yield Finding(
            "classes_string",
            f"classes={name!r} of the data set to {what_for} is a string and no tuple: "
            f"its {len(name)} letters are taken for {len(name)} classes, of which no "
            "annotation is.",
            "A tuple of one needs a comma:",
            f"{loader} = {source(dict(dataset=right))}",
            fails=True,
        )
        return


def num_classes(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Heads with another number of classes than the data set."""
    wanted = facts.classes
    named = number_of_classes(dig(cfg, "train_dataloader", "dataset"))
    if any(map(_string_of, _leaves(dig(cfg, "train_dataloader", "dataset")))):
        wanted = named  # what was meant
    model = cfg.get("model")
    if wanted is None or any(name in str(_types(model)) for name in _OPEN):
        return
    leaves = _leaves(dig(cfg, "train_dataloader", "dataset"))
    panoptic = any("Panoptic" in str(leaf.get("type")) for leaf in leaves)
    wrong = [(path, n) for path, n in _heads(model, ()) if n != wanted]
    if panoptic:  # heads for the things alone have fewer, and how many is not known
        wrong = [(path, n) for path, n in wrong if path[-1] == _BOTH]
    if not wrong:
        return
    lines: dict[str, Any] = {}
    for path, _ in wrong:
        _set(lines, path, wanted, dig(model, *path[:-1]))
    in_lists = panoptic or any(key.isdigit() for path, _ in wrong for key in path)
    told = ", ".join(f"model.{'.'.join(path)}={n}" for path, n in wrong)
    few = min(n for _, n in wrong) < wanted
    yield Finding(
        "num_classes",
        f"{told}, and the data set to train on has {wanted} class"
        f"{'es' * (wanted != 1)}. "
        + (
            "Labels beyond a head's classes are an index out of range, on CUDA a "
            "device-side assert."
            if few
            else "The rest is never seen, and costs memory and time."
        ),
        "Give every head the classes of the data set, and metainfo=dict(classes=...) "
        "to the data sets of validation and test as well.",
        "" if in_lists else f"model = {source(lines)}",
        fails=few,
    )


def number_of_classes(
    dataset: Any, of_type: Callable[[Any], int | None] = lambda name: None
) -> int | None:
    """Of the data set of a config; None if it does not tell, or tells two.

    Args:
        dataset: As in a data loader's config.
        of_type: What a class has, by its ``type``, where the config names none.
    """
    known = {_number(leaf, of_type) for leaf in _leaves(dataset)}
    return known.pop() if len(known) == 1 else None


def _leaves(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The data sets that are wrapped in others."""
    if isinstance(dataset, (list, tuple)):
        for part in dataset:
            yield from _leaves(part)
    elif isinstance(dataset, Mapping):
        inner = [dataset[key] for key in ("dataset", "datasets") if dataset.get(key)]
        if inner:
            yield from _leaves(inner)
        else:
            yield dataset


def _number(
    leaf: Mapping[str, Any], of_type: Callable[[Any], int | None]
) -> int | None:
    if _string_of(leaf) is not None:
        return 1
    classes = dig(leaf, "metainfo", "classes")  # CLASSES is not read any more
    if isinstance(classes, (list, tuple)):
        return len(classes)
    if classes is not None:
        return None  # of a file
    return of_type(leaf.get("type"))


def _string_of(leaf: Mapping[str, Any]) -> str | None:
    """``classes``, if it is a string and not the path of a file with their names."""
    name = dig(leaf, "metainfo", "classes")
    if not isinstance(name, str) or osp.splitext(name)[1] or osp.exists(name):
        return None
    return name


def _heads(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where a head, or a part of one, has ``num_classes``, and how many."""
    if isinstance(tree, (list, tuple)):
        for i, part in enumerate(tree):
            yield from _heads(part, (*path, str(i)))
    # Of class-agnostic masks there is one.
    if not isinstance(tree, Mapping) or tree.get("class_agnostic"):
        return
    within = any(key in _HEADS for key in path)
    if within:
        n, things = map(whole_number, (tree.get("num_classes"), tree.get(_THINGS)))
        if n is not None:
            yield (*path, "num_classes"), n
        if things is not None:
            yield (*path, _BOTH), things + (whole_number(tree.get(_STUFF)) or 0)
    for key in _PARTS if within else (*_AROUND, *_HEADS):
        if key in tree:
            yield from _heads(tree[key], (*path, key))


def _set(tree: dict[str, Any], path: tuple[str, ...], wanted: int, head: Any) -> None:
    """Give a head its classes, in the lines to paste."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    if path[-1] != _BOTH:
        tree[path[-1]] = wanted
        return
    tree.update({_THINGS: wanted, _STUFF: 0})
    weights = dig(head, "loss_cls", "class_weight")  # of each, and of no object
    if isinstance(weights, (list, tuple)) and weights:
        right = [weights[0]] * wanted + [weights[-1]]
        tree["loss_cls"] = dict(class_weight=right)


def _types(tree: Any) -> list[str]:
    if isinstance(tree, Mapping):
        own = [str(tree["type"])] if "type" in tree else []
        return own + [name for part in tree.values() for name in _types(part)]
    if isinstance(tree, (list, tuple)):
        return [name for part in tree for name in _types(part)]
    return []
