"""One step with an enormous gradient: what it ruins is taken back, what not is left."""

import pytest

from amp_hooks.engine.condition import Costs, State
from amp_hooks.health.step_look import LOOKS, StepLook
from amp_hooks.health.thresholds import START_EARLY
from tests import helpers, processes, small

AT = 160
SUITE = dict(
    type="amp_hooks.StabilityHook",
    preflight=None,
    rollback=dict(interval=25, probation=5, warmup_iters=5),
)
BAD, FAIR = Costs(1.7, 1.0, 50), Costs(1.1, 1.0, 50)


BEGIN = START_EARLY - 5


def look(norms, costs=(), begin=BEGIN):
    made = StepLook()
    for i, norm in enumerate(norms, begin):
        if made.due(i, norm, 0.7):
            made.ruined(None)
    for each in costs:
        made.ruined(each)
    return made


@pytest.mark.parametrize(
    ("norms", "seen"),
    [
        ([1.0] * 10 + [150.0], True),
        ([1.0] * 10 + [90.0], False),  # as hard batches
        ([1.0] * 4 + [150.0], False),  # too few to tell
        ([1.0] * 10 + [3.0, 150.0], False),  # of the largest
        ([1.0] * 10 + [float("inf"), 1.0], False),  # refused
        ([1.0] * 10 + [None, 150.0], True),  # accumulation
        ([0.0] * 10 + [1.0], False),
    ],
)
def test_how_large_is_enormous(norms, seen):
    made, last = look(norms), BEGIN + len(norms) - 1
    due = [i for i in range(1, 20) if made.due(last + i, 1.0, 0.7)]
    assert due == (list(LOOKS) if seen else [])


@pytest.mark.parametrize(
    ("costs", "ruined"),
    [
        ([BAD] * 4, True),
        ([BAD, FAIR, BAD, FAIR], True),  # 1.4
        ([FAIR, FAIR, BAD, FAIR], False),  # 1.25
        ([BAD] * 3, False),  # too early
        ([BAD, BAD, None, BAD], False),
        ([BAD, BAD, BAD._replace(compared=False), BAD], False),
        # Weights of a start: what costs as much has been unlearned.
        ([Costs(1.3, 1.4, 0, usual=2.0)] * 4, True),
        ([Costs(0.7, 1.4, 0, usual=2.0)] * 4, False),
    ],
)
def test_how_much_worse_is_ruined(costs, ruined):
    made = look([1.0] * 10 + [200.0])
    found = [made.ruined(each) for each in costs]
    assert [x is not None for x in found] == [False] * (len(costs) - 1) + [ruined]
    if costs == [BAD] * 4:
        ill = found[-1]
        assert (ill.state, ill.since, ill.sudden) == (State.ILL, BEGIN + 10, True)
        assert ill.why == (
            "over 4 batches the weights of now cost 1.7, and those of iteration 50 1; "
            "the gradient norm was x200 at iteration 105"
        )


def test_a_start_has_looks_of_its_own():
    made = look([1.0] * 10 + [200.0], begin=50)
    assert not made.due(60 + LOOKS[0], 1.0, 0.7)


def test_it_survives_a_resume_and_not_a_rollback():
    first, second = look([1.0] * 10 + [200.0], [BAD] * 3), StepLook()
    second.load_state(first.state())
    assert second.due(BEGIN + 10 + LOOKS[-1], 1.0, 0.7)
    assert second.jump.question.level == 0.7
    assert second.ruined(BAD) is not None
    second.load_state(first.state())
    second.forget()
    assert not second.due(BEGIN + 10 + LOOKS[-1], 1.0, 0.7)
    # What was stepped with is the new usual.
    assert not second.due(130, 300.0, 0.7)
    assert not second.due(130 + LOOKS[0], 1.0, 0.7)


def test_only_once_in_a_while():
    """Such a step heals; four times in 5000 iterations would end the run."""
    made = look([1.0] * 10 + [200.0], [BAD] * 4)
    made.forget()
    kept = StepLook()
    kept.load_state(made.state())
    for start, due in ((4000, False), (5100, True)):
        for i in range(100):
            kept.due(start + i, 1.0, 0.7)
        kept.due(start + 100, 200.0, 0.7)
        assert kept.due(start + 100 + LOOKS[0], 1.0, 0.7) is due


class Spike(small.Hook):
    """The loss of one batch, finite."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.factor = 3000.0 if runner.iter == AT else 1.0


def train(tmp_path, trained, hooks, clip=None, lr=1e-4, **more):
    model, seen = small.Scaled(), small.Seen()
    model.load_state_dict(trained)
    wrapper = dict(optimizer=dict(type="SGD", lr=lr, momentum=0.9), clip_grad=clip)
    hooks = [*hooks, Spike(), seen]
    runner = small.build(tmp_path, hooks, model, wrapper=wrapper, **more)
    runner.train()
    return runner, seen.losses


def last(losses):
    return sum(losses[-20:]) / 20


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    "length", [dict(iters=230, lr=2e-4), dict(epochs=7, lr=5e-5)], ids=str
)
def test_what_it_ruins_is_taken_back(tmp_path, trained, length, dtype):
    """In FP16 GradScaler refuses such a step by itself; nothing does in the others."""
    _, losses = train(tmp_path, trained, [], dtype=dtype, **length)
    before = sum(losses[:AT]) / AT
    assert (stock := last(losses)) > 1.4 * before
    runner, losses = train(tmp_path, trained, [SUITE], dtype=dtype, **length)
    (rollback,) = small.ledger(runner, "rollback")
    assert (rollback["iter"], rollback["target_iter"]) == (AT + LOOKS[-1], 150)
    assert rollback["verdict"] == "DIVERGED"
    assert rollback["lr_factor"] == 1  # one batch did it
    assert "the gradient norm was x" in rollback["why"]
    assert last(losses) < min(1.2 * before, 0.7 * stock)


def test_a_learning_rate_that_had_risen_is_to_blame(tmp_path, trained):
    """One that is too high makes such gradients by itself."""
    hooks = [SUITE, small.RaiseLR(2, AT - 5)]
    runner, _ = train(tmp_path, trained, hooks, lr=2e-4, iters=230)
    (rollback,) = small.ledger(runner, "rollback")
    assert "the gradient norm was x" in rollback["why"]
    assert rollback["lr_factor"] == 0.1


@pytest.mark.parametrize("length", [dict(iters=230), dict(epochs=7)], ids=str)
def test_what_does_no_harm_is_left_alone(tmp_path, trained, length):
    """To the bit: its gradient is clipped, as in most recipes of transformers."""
    clip = dict(max_norm=1.0)
    stock, _ = train(tmp_path, trained, [], clip, **length)
    runner, _ = train(tmp_path, trained, [SUITE], clip, **length)
    assert small.ledger(runner, "diverged", "rollback", "veto") == []
    assert small.same(small.state(stock), small.state(runner))


@pytest.mark.slow
def test_two_ranks_look_together(tmp_path):
    """The bad batch is of one rank; in the averaged gradient both know of it."""
    program = helpers.ROOT / "tests/health/two_ranks.py"
    done = processes.two_ranks(
        program, tmp_path, 0.002, "step", timeout=300, cwd=helpers.ROOT
    )
    lines = [x.split(" | ") for x in done.stdout.splitlines() if x.startswith("rank")]
    assert [went for _, went, *_ in lines] == [f"[({160 + LOOKS[-1]}, 150)]"] * 2
    assert lines[0][3] == lines[1][3]  # of the weights
