"""torch.compile passes over what is ours, and compiles what is the user's."""

import pytest
import torch
from torch import nn

from amp_hooks.engine.torch_api import TORCH
from tests import small

LEVELS = 5

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


def train(tmp_path, graphs, hooks, **length):
    graphs.clear()
    torch._dynamo.reset()
    cfg = dict(compile=dict(backend="recording"))
    runner = small.build(tmp_path, hooks, model=Pyramid, cfg=cfg, **length)
    runner.train()
    return runner.model.state_dict(), list(graphs)


@pytest.mark.parametrize("length", [dict(iters=20), dict(epochs=1)])
def test_nothing_of_ours_is_compiled(tmp_path, graphs, length):
    """Each call of a classifier layer parts the graph that it is in, no more."""
    suite = dict(type="amp_hooks.StabilityHook", preflight=None)
    plain, stock = train(tmp_path, graphs, [], **length)
    watched, found = train(tmp_path, graphs, [suite], **length)
    assert small.same(plain, watched)
    lines = [
        node.stack_trace.strip().splitlines()[-2:]
        for graph in found
        for node in graph.graph.nodes
        if node.stack_trace
    ]
    assert lines
    assert not [line for line in lines if "/amp_hooks/" in line[0]]
    assert len(stock) < len(found) <= len(stock) + LEVELS + 1
