"""A sample of scripts/sweep_siblings.py, where the packages are: nox -s siblings."""

import importlib.util
import sys

import pytest

from tests import helpers

pytestmark = [
    # The packages' own, and torch's at what they do.
    pytest.mark.filterwarnings("ignore"),
]
NAMES = [
    "mmyolo/yolov8",
    "mmseg/fcn",
    "mmpretrain/resnet",
    "mmpose/heatmap",
    "mmpose/rtmpose",
    "mmrotate/rotated_retinanet",
    "mmaction/tsn",
    "mmocr/crnn",
    "mmdet3d/pointpillars",
]
# They compute their accuracy in NumPy, which has no bfloat16.
CANNOT = {
    (name, "bfloat16") for name in ("mmpose/heatmap", "mmpose/rtmpose", "mmaction/tsn")
}


@pytest.fixture(scope="module")
def sweep():
    sys.path.insert(0, str(helpers.ROOT / "scripts"))
    return importlib.import_module("sweep_siblings")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_watched_saved_and_resumed(name, precision, sweep):
    package, family = name.split("/")
    pytest.importorskip(package)
    result = sweep.check(package, sweep.SIBLINGS[package][family], precision)
    status = "cannot run" if (name, precision) in CANNOT else "ok"
    assert result.status == status, result.reason
