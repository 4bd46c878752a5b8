"""Digits whose annotations have bad boxes that reach training."""

import json
from xml.etree import ElementTree as ET

from tests.data.bad_images import META

CLASSES = [str(i) for i in range(10)]

# From a sound (x1, y1, x2, y2).
SPOIL = {
    "zero": lambda x1, y1, x2, y2: (x1, y1, x1, y2),
    "negative": lambda x1, y1, x2, y2: (x2, y1, x1, y2),
    "outside": lambda x1, y1, x2, y2: (x1 + 500, y1, x2 + 500, y2),
}


def voc(digits, out, spoiled=()):
    """A copy of the training set in Pascal VOC's format, which mmdet takes as it is.

    Args:
        digits: The digits set.
        out: Folder for it.
        spoiled: ``(image id, place of the box in the image, kind)`` each.

    Returns:
        Options of a config that trains on it.
    """
    content = json.loads((digits / "train.json").read_text())
    spoiled = {(i, k): kind for i, k, kind in spoiled}
    for folder in ("JPEGImages", "Annotations"):
        (out / folder).mkdir(parents=True)
    for image in content["images"]:
        name = f"{image['id']:06d}"
        source = digits / "train" / image["file_name"]
        (out / "JPEGImages" / f"{name}.jpg").symlink_to(source)
        root = ET.Element("annotation")
        size = ET.SubElement(root, "size")
        for key in ("width", "height"):
            ET.SubElement(size, key).text = str(image[key])
        ours = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        for k, annotation in enumerate(ours):
            x, y, w, h = annotation["bbox"]
            box = x, y, x + w, y + h
            if kind := spoiled.get((image["id"], k)):
                box = SPOIL[kind](*box)
            thing = ET.SubElement(root, "object")
            ET.SubElement(thing, "name").text = str(annotation["category_id"])
            corners = ET.SubElement(thing, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box):
                ET.SubElement(corners, key).text = str(value + 1)
        ET.ElementTree(root).write(out / "Annotations" / f"{name}.xml")
    names = [f"{image['id']:06d}" for image in content["images"]]
    (out / "train.txt").write_text("\n".join(names))
    dataset = dict(
        _delete_=True,
        type="XMLDataset",
        data_root=str(out),
        ann_file="train.txt",
        data_prefix=dict(sub_data_root=""),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            # Without clip_object_border boxes outside would become boxes of no size.
            dict(type="Resize", scale=(64, 64), clip_object_border=False),
            dict(type="PackDetInputs", meta_keys=META),
        ],
    )
    return {"train_dataloader.dataset": dataset}
