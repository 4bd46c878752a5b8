"""What StabilityPanelHook costs when it publishes, for bench_overhead.py."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
from bench_rivals import suite
from bench_runs import Live

from amp_hooks.engine.runtime import Runtime
from amp_hooks.hooks import StabilityPanelHook
from amp_hooks.panel.scalars import scalars_of
from amp_hooks.panel.tensorboard_panel import TensorBoardPanel

TIMES = 50
CARD = dict(event="recover", iter=0, verdict="HEALTHY", lr_factor=0.1)


def milliseconds(action):
    """Median time of a call."""
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times) * 1e3


def publishing(model, batch, optimizer, args):
    """A table: what is written, how often by default, and its time in ms."""
    panel = StabilityPanelHook(interval=10**9)
    live = Live(model, [*suite(panel=None), panel], batch, args, optimizer)
    runtime = Runtime.of(live.runner)
    record = runtime.recorder.records[-1]
    scalars = scalars_of(record)
    backends = live.runner.visualizer._vis_backends
    table = [["written by StabilityPanelHook", "default", "ms"]]

    def row(label, how_often, action):
        table.append([label, how_often, f"{milliseconds(action):.2f}"])

    def publish():
        panel._worst = dict(scalars)
        panel._publish(live.runner, 1)

    row("nothing: the values are kept", "every iteration", lambda: panel._add(record))
    for kind in list(backends):
        live.runner.visualizer._vis_backends = {kind: backends[kind]}  # this one alone
        label = f"{len(scalars)} scalars to {kind}"
        row(label, "every 10, and at an event", publish)
    live.runner.visualizer._vis_backends = backends
    writer = TensorBoardPanel(live.runner)
    row("a card of text", "at an event, 200 at most", lambda: writer.card(CARD))
    logits = np.random.default_rng(0).normal(size=100_000)
    row(
        "a histogram of 100,000 logits",
        "off",
        lambda: writer.histogram("amp/cls_score/x", logits, 1),
    )
    return table
