"""The page of symptoms quotes what the log really says."""

import re

import pytest

from tests import helpers

PAGE = (helpers.ROOT / "docs/en/symptoms.md").read_text()
QUOTES = {
    title: [
        quote for _, quote in re.findall(r"^(```text)\n(.*?)^```$", text, re.M | re.S)
    ]
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
SUITE = [
    dict(type="amp_hooks.StabilityHook", rollback=dict(interval=4, probation=0)),
]
CLS = "bbox_head.retina_cls"


def detached_from_the_model(runner):
    parse = runner.model.parse_losses

    def parse_losses(losses):
        loss, log_vars = parse(losses)
        return loss.detach().requires_grad_(), log_vars

    runner.model.parse_losses = parse_losses


def a_mean_over_no_samples(runner):
    """NaN, with a gradient of zero, from the sixth iteration on."""
    head = runner.model.bbox_head
    loss_by_feat = head.loss_by_feat

    def with_one_more(cls_scores, *args, **kwargs):
        losses = loss_by_feat(cls_scores, *args, **kwargs)
        number = 0 if runner.iter >= 5 else 1
        losses["loss_extra"] = 0 * cls_scores[0].flatten()[:number].float().mean()
        return losses

    head.loss_by_feat = with_one_more


# Title to hooks, iterations, and what else is done to the run.
CASES = {
    "NaN at the start": (
        [helpers.fault("forward", 5, where=CLS, value="inf"), *SUITE],
        7,
        None,
    ),
    "NaN late": ([helpers.fault("loss", 5, iters=3, value="nan"), *SUITE], 9, None),
    "The loss scale collapses": (
        [
            helpers.fault("gradient", 0, iters=20, where=f"{CLS}.weight", value="inf"),
            dict(type="amp_hooks.LossScaleMonitorHook"),
        ],
        18,
        None,
    ),
    "mAP 0 with a finite loss": (
        [helpers.fault("ema", 5, where="backbone.bn1.weight"), *SUITE],
        9,
        None,
    ),
    "A loss that is finite and stays high": (
        [helpers.fault("loss", 20, iters=12, value="x1000"), *SUITE],
        32,
        None,
    ),
    "A loss term that is NaN and does no harm": (SUITE, 7, a_mean_over_no_samples),
    '"No inf checks were recorded for this optimizer"': (
        SUITE,
        2,
        detached_from_the_model,
    ),
    '"matrix contains invalid numeric entries"': (
        [helpers.fault("raise", 3), *SUITE],
        5,
        None,
    ),
}


def plain(text):
    """Without line breaks, folders and the value of numbers."""
    text = re.sub(r"\S*/(?=\w)", "", " ".join(text.split()))
    return re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", text)


def check(title, runner):
    quotes = [part for text in QUOTES[title] for part in text.split("[amp_hooks]")[1:]]
    assert quotes
    said = plain(helpers.log(runner))
    for quote in quotes:
        assert plain(quote) in said


def test_every_section_with_a_quote_is_provoked():
    quoted = {title for title, quotes in QUOTES.items() if quotes}
    assert quoted == {*CASES, "NaN after a resume"}


@pytest.mark.parametrize("title", CASES)
def test_the_log_says_what_the_page_quotes(build, title):
    hooks, iters, prepare = CASES[title]
    options = dict(log_level="WARNING")
    runner = build("retinanet", iters=iters, hooks=hooks, options=options)
    if prepare:
        prepare(runner)
    runner.train()
    check(title, runner)


def test_a_poisoned_checkpoint_is_passed_over_as_the_page_says(build):
    saves = {"default_hooks.checkpoint.interval": 4}
    poison = helpers.fault("buffer", 5, where="backbone.bn1.running_var")
    stock = build("retinanet", iters=8, hooks=[poison], options=saves)
    stock.train()
    options = dict(resume=True, log_level="WARNING", **saves)
    runner = build(
        "retinanet", iters=10, hooks=SUITE, options=options, work_dir=stock.work_dir
    )
    runner.train()
    assert runner.iter == 10
    check("NaN after a resume", runner)
