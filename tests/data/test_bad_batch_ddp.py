"""The ledger of bad batches on two ranks."""

import torch

from tests import helpers
from tests.data.bad_images import with_bad_images
from tests.integration.test_ddp import train_on_two_ranks

BAD = 3


def test_the_rank_and_its_images_are_named_then_left_out(digits, tmp_path):
    out = tmp_path / "spy"
    results = train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=9,
        ema=False,
        precision="float32",
        hooks=[
            dict(type="amp_hooks.StepGuardHook"),
            dict(type="amp_hooks.LossScaleMonitorHook"),
            dict(type="amp_hooks.BadBatchHook", skip=True),
            dict(type="tests.data.bad_images.Spy", out=str(out)),
        ],
        options={"train_dataloader.dataset.indices": 8, **with_bad_images(BAD)},
    )
    spies = [torch.load(f"{out}.{rank}") for rank in (0, 1)]
    appearances = [
        (i, rank)
        for i in range(9)
        for rank in (0, 1)
        if BAD in spies[rank]["loaded"][i]
    ]
    (first, second), later = appearances[:2], appearances[2:]
    assert later
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    ledger = helpers.read_ledger(path)
    lines = [line for line in ledger if line["event"] == "bad_batch"]
    assert [(x["iter"], x["rank"]) for x in lines] == [first, second]
    for line in lines:
        assert line["ids"] == spies[line["rank"]]["loaded"][line["iter"]]
    assert BAD in [line["id"] for line in ledger if line["event"] == "suspect"]
    assert spies[0]["suspects"] == spies[1]["suspects"]
    for i, rank in later:
        assert BAD not in spies[rank]["trained"][i]
        assert len(spies[rank]["trained"][i]) == 2
    assert sum(spy["replaced"] for spy in spies) >= len(later)
    # Collectives on the two bad iterations only.
    for result in results:
        bad = {i for i, n in enumerate(result["collectives"]) if n}
        assert bad == {first[0], second[0]}
