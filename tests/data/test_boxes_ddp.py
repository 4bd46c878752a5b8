"""Bad boxes on two ranks: each looks at its own, one ledger tells of both."""

import math

from tests import helpers
from tests.integration.test_ddp import train_on_two_ranks


def bad_boxes(at, rank):
    return dict(what="boxes", at=at, value="zero", rank=rank)


def test_the_ledger_has_the_lines_of_both_and_clean_iterations_no_collective(
    digits, tmp_path
):
    faults = [bad_boxes(1, 0), bad_boxes(2, 1), bad_boxes(3, 1), bad_boxes(6, 1)]
    faults.append(dict(what="images", at=4, value="inf", count="all"))
    results = train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=8,
        ema=False,
        precision="float32",
        hooks=[
            dict(type="amp_hooks.FaultInjectionHook", faults=faults),
            dict(type="amp_hooks.StepGuardHook"),
            dict(type="amp_hooks.BoxSanityHook", action="drop"),
        ],
    )
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    ledger = helpers.read_ledger(path)
    lines = [line for line in ledger if line["event"] == "boxes"]
    assert [(x["iter"], x["rank"]) for x in lines] == [(1, 0), (2, 1), (3, 1), (6, 1)]
    for line in lines:
        assert line["images_total"] == len(line["images"]) == 2
        assert line["counts"] == {"zero": 2}
    # The two that waited are written when an iteration is bad, the third at the end.
    kinds = [line["event"] for line in ledger]
    assert kinds.index("overflow") < ledger.index(lines[1])
    assert ledger.index(lines[2]) < len(ledger) - 2
    for result in results:
        busy = {i for i, n in enumerate(result["collectives"]) if n}
        assert busy <= {4}
        assert all(map(math.isfinite, result["losses"][:4]))
