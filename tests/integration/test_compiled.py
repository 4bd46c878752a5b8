"""torch.compile compiles the user's code as it does without us."""

import gc
import json
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.utils.checkpoint import checkpoint

from amp_hooks.engine import private, traceable
from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.torch_api import TORCH
from tests import small

LEVELS = 5
SUITE = dict(type="amp_hooks.StabilityHook", preflight=None)
# The first step is not compiled, and a compiled one had other bits before.
STEPS_ALIKE = TORCH >= (2, 13)
# This torch can pass over our folder but for one file.
IN_GRAPHS = TORCH >= (2, 8)

# torch's own, while it compiles.
pytestmark = [
    pytest.mark.skipif(TORCH < (2, 3), reason="compiles in other pieces"),
    pytest.mark.filterwarnings("default::UserWarning:torch.*"),
    pytest.mark.filterwarnings("default:Profiler record function"),
]


class Pyramid(small.Small):
    """One classifier over several levels."""

    def __init__(self):
        super().__init__()
        self.bbox_head.fc_cls = nn.Linear(16, 4)

    def forward(self, x, y, mode="loss"):
        features = self.backbone(x)
        levels = [self.bbox_head.fc_cls(features / i) for i in range(5, 5 + LEVELS)]
        return dict(loss_cls=[self.bbox_head.loss_cls(x, y) for x in levels])


class Several(Pyramid):
    """Its forward pass is called for parts of the batch, as of a siamese network."""

    def train_step(self, data, optim_wrapper):
        parts = [
            self(data["x"][i : i + 2], data["y"][i : i + 2]) for i in range(0, 8, 2)
        ]
        loss = sum(sum(losses["loss_cls"]) for losses in parts)
        optim_wrapper.update_params(loss)
        return dict(loss=loss.detach())


class Checkpointed(Pyramid):
    """The activations of the classifier are computed anew."""

    def forward(self, x, y, mode="loss"):
        features, layer = self.backbone(x), self.bbox_head.fc_cls
        logits = [checkpoint(layer, features / i, use_reentrant=False) for i in (5, 6)]
        return dict(loss_cls=[self.bbox_head.loss_cls(x, y) for x in logits])


@pytest.fixture
def graphs():
    """Those that are compiled."""
    from torch._dynamo import register_backend
    from torch._dynamo.backends import registry

    found = []

    def recording(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    register_backend(recording, "recording")
    yield found
    registry._COMPILER_FNS.pop("recording")
    torch._dynamo.reset()


def train(tmp_path, graphs, hooks, target="train_step", model=Pyramid, **length):
    graphs.clear()
    torch._dynamo.reset()
    cfg = dict(compile=dict(backend="recording") if target == "train_step" else False)
    runner = small.build(tmp_path, hooks, model=model, cfg=cfg, **length)
    model = runner.model
    if target in ("forward", "whole"):
        options = dict(backend="recording", fullgraph=target == "whole")
        model.forward = torch.compile(model.forward, **options)
    if target == "model":
        model.compile(backend="recording")
    runner.train()
    return runner, list(graphs)


def measured(runner, name):
    records = Runtime.of(runner).recorder.records
    return [record.values.get(name) for record in records]


LENGTHS = pytest.mark.parametrize("length", [dict(iters=20), dict(epochs=1)])


@LENGTHS
def test_no_more_graphs_of_a_training_step(tmp_path, graphs, length):
    """As MMEngine compiles it."""
    compare(tmp_path, graphs, "train_step", length)


@pytest.mark.skipif(not IN_GRAPHS, reason="it is not compiled then")
@LENGTHS
@pytest.mark.parametrize("target", ["forward", "model"])
def test_no_more_graphs_of_a_forward_pass(tmp_path, graphs, target, length):
    compare(tmp_path, graphs, target, length)


@pytest.mark.skipif(not IN_GRAPHS, reason="it is not compiled then")
def test_a_process_group_made_between_two_runs(tmp_path, graphs):
    """torch forgets what it was told to trace, with every default process group."""
    train(tmp_path, graphs, [SUITE], "forward", iters=2)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.distributed.destroy_process_group()
    compare(tmp_path, graphs, "forward", dict(iters=20))


def compare(tmp_path, graphs, target, length):
    """None is parted by ours, and none compiled anew; the same bits come of them."""
    plain, stock = train(tmp_path, graphs, [], target, **length)
    watched, found = train(tmp_path, graphs, [SUITE], target, **length)
    if target != "train_step" or STEPS_ALIKE:
        assert small.same(small.state(plain), small.state(watched))
    lines = [
        node.stack_trace.strip().splitlines()[-2:]
        for graph in found
        for node in graph.graph.nodes
        if node.stack_trace
    ]
    assert lines
    assert not [line for line in lines if "/amp_hooks/" in line[0]]
    assert not any(map(private.forward_hooks_of, watched.model.modules()))
    if IN_GRAPHS:
        assert 0 < len(found) <= len(stock)
    else:
        assert len(found) <= len(stock) + LEVELS + 1


def test_the_same_is_measured(tmp_path, graphs):
    """Logits of compiled code are read when it is over; nothing is left of them."""
    targets = [None, "forward", "model", *["train_step"] * STEPS_ALIKE]
    runs = [train(tmp_path, graphs, [SUITE], t, iters=20)[0] for t in targets]
    for name in ("logit_absmax", "logit_nan", "loss"):
        eager, *compiled = (measured(runner, name) for runner in runs)
        assert compiled == [eager] * len(compiled)
        assert all(values for values in eager)


def test_the_clamp_goes_on_in_compiled_code(tmp_path, graphs):
    """A switch in the middle of the run reaches what has been compiled before it."""
    clamp = dict(type="amp_hooks.HeadClampHook", limit=1.5, trigger=2.0)
    hooks = [clamp, dict(type="amp_hooks.ClsScoreMonitorHook")]
    runs = [train(tmp_path, graphs, hooks, t)[0] for t in (None, "forward")]
    eager, compiled = (measured(runner, "clamped") for runner in runs)
    assert eager == compiled
    at = next(i for i, clamped in enumerate(eager) if clamped)
    assert at > 3
    assert small.same(*map(small.state, runs))


@pytest.mark.parametrize("length", [dict(iters=60), dict(epochs=2)])
def test_a_bad_batch_of_compiled_code_is_looked_into(tmp_path, graphs, length):
    """The step is refused, and the batch run once more, operation by operation."""
    spoil = small.SpoilInputs([40])
    runner, _ = train(tmp_path, graphs, [SUITE, spoil], **length)
    (veto,) = small.ledger(runner, "veto")
    assert veto["iter"] == 40
    (report,) = Path(runner.log_dir).glob("faults/*/report.json")
    finding = json.loads(report.read_text())["finding"]
    assert finding == "NaN/Inf in the model's input: input.x."
    assert all(v.isfinite().all() for v in small.state(runner).values())


def test_what_is_closed_keeps_nothing(tmp_path, graphs):
    """A model that is trained on when training is over does not fill the memory."""
    runner, _ = train(tmp_path, graphs, [SUITE], "forward", iters=20)
    hooks = {id(o): o for o in gc.get_objects() if type(o) is traceable.Later}
    data = torch.utils.data.default_collate(small.samples(8))
    for _ in range(3):
        runner.model(**data)
    assert hooks
    assert not [h for h in hooks.values() if vars(h)["_last"] is not vars(h)["_done"]]


@pytest.mark.skipif(not IN_GRAPHS, reason="hooks part the graphs")
@pytest.mark.parametrize("target", ["forward", "whole"])
@LENGTHS
def test_several_calls_before_the_backward_pass(tmp_path, graphs, target, length):
    """They are one graph, whatever has been kept of those before."""
    more = dict(length, model=Several)
    plain, stock = train(tmp_path, graphs, [], target, **more)
    watched, found = train(tmp_path, graphs, [SUITE], target, **more)
    assert len(found) == len(stock)
    assert small.same(small.state(plain), small.state(watched))
    assert all(measured(watched, "logit_absmax"))


@pytest.mark.skipif(not IN_GRAPHS, reason="hooks part the graphs")
def test_where_there_can_be_nothing_of_ours(tmp_path, graphs, capfd):
    """A graph that must be whole, with activation checkpointing around the layer."""
    more = dict(model=Checkpointed, iters=20)
    plain, stock = train(tmp_path, graphs, [], "whole", **more)
    watched, found = train(tmp_path, graphs, [SUITE], "whole", **more, log_level="INFO")
    assert len(found) == len(stock)
    assert small.same(small.state(plain), small.state(watched))
    told = capfd.readouterr().out.count("neither measured nor clamped")
    assert told == 1
    # And not in the next training of this process.
    train(tmp_path, graphs, [SUITE], "forward", iters=20)
    assert traceable.GRAPHS.on


@pytest.mark.skipif(not IN_GRAPHS, reason="hooks part the graphs")
@pytest.mark.parametrize("length", [dict(iters=60), dict(epochs=2)])
def test_the_clamp_does_not_end_a_run_of_whole_graphs(tmp_path, graphs, length):
    """It comes on because of a bad batch, and can be in no graph."""
    spoil = small.SpoilInputs([40])
    runner, _ = train(tmp_path, graphs, [SUITE, spoil], "whole", **length)
    assert small.ledger(runner, "clamp_on")
    assert runner.iter == (length.get("iters") or 64)
    assert all(v.isfinite().all() for v in small.state(runner).values())


@pytest.mark.skipif(not IN_GRAPHS, reason="hooks part the graphs")
def test_what_the_user_has_written_goes_on_to_the_user(tmp_path, graphs):
    """A model that torch.compile does not get whole ends as without us."""

    class Branches(Pyramid):
        def forward(self, x, y, mode="loss"):
            return super().forward(x if x.sum() > 0 else -x, y)

    for hooks in ([], [SUITE]):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="[Dd]ata-dependent"):
            train(tmp_path, graphs, hooks, "whole", model=Branches, iters=20)
