"""Which operators are to be built: the decision alone."""

import pytest

from tests.helpers import ROOT
from tests.machines import make_toolkit


@pytest.fixture
def plans(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import mmcv_plan

    return mmcv_plan


CARD = ["8.6"]


@pytest.mark.parametrize(
    ("asked", "cuda", "cards", "versions", "archs", "key", "why"),
    [
        ("", None, [], [], "", "cpu", "torch 2.13.0 is built for the CPU"),
        ("", None, [], ["13.0"], "", "cpu", "torch 2.13.0 is built for the CPU"),
        ("", "13.0", [], ["13.0"], "", "cpu", "torch sees no GPU"),
        ("", "13.0", [], ["13.0"], "8.6", "cpu", "torch sees no GPU"),
        ("", "13.0", CARD, [], "", "cpu", "there is no nvcc"),
        ("", "13.0", CARD, ["12.4"], "", "cpu", "nvcc is 12.4 in /cuda-12.4"),
        ("", "13.0", CARD, ["13.1"], "", "cuda-13.1-sm-8.6", "fits"),
        ("1", "13.0", CARD, ["12.4", "13.0"], "", "cuda-13.0-sm-8.6", "fits"),
        ("", "13.0", ["9.0", "8.6", "9.0"], ["13.0"], "", "cuda-13.0-sm-8.6_9.0", ""),
        ("", "13.0", CARD, ["13.0"], "8.0 9.0+PTX", "cuda-13.0-sm-8.0_9.0+PTX", ""),
        ("1", "13.0", [], ["13.0"], "8.6", "cuda-13.0-sm-8.6", ""),
        ("0", "13.0", CARD, ["13.0"], "", "cpu", "AMP_HOOKS_CUDA=0"),
    ],
)
def test_decide(plans, asked, cuda, cards, versions, archs, key, why):
    nvccs = [plans.Nvcc(f"/cuda-{version}", version) for version in versions]
    plan = plans.decide(asked, "2.13.0", cuda, cards, nvccs, archs)
    assert plan.key == key
    assert why in plan.why


@pytest.mark.parametrize(
    ("cuda", "cards", "versions", "what", "remedy"),
    [
        (None, [], ["13.0"], "torch 2.13.0 is built for the CPU", "one with CUDA"),
        ("13.0", [], ["13.0"], "torch sees no GPU", "TORCH_CUDA_ARCH_LIST=8.6"),
        ("13.0", CARD, [], "there is no nvcc", "install CUDA toolkit 13"),
        ("12.8", CARD, ["13.0"], "nvcc is 13.0 in /cuda-13.0", "CUDA toolkit 12"),
    ],
)
def test_asked_for_cuda_that_cannot_be_built(
    plans, cuda, cards, versions, what, remedy
):
    nvccs = [plans.Nvcc(f"/cuda-{version}", version) for version in versions]
    with pytest.raises(plans.CannotBuild) as error:
        plans.decide("1", "2.13.0", cuda, cards, nvccs)
    assert what in str(error.value)
    assert remedy in str(error.value)


def test_a_value_that_means_nothing(plans):
    with pytest.raises(ValueError, match="AMP_HOOKS_CUDA is 'yes'; it may be 0, 1"):
        plans.decide("yes", "2.13.0", "13.0", CARD, [])


@pytest.mark.parametrize(
    ("kept", "asked", "cards", "nvcc", "serves"),
    [
        ("cpu", "", [], None, True),
        ("cpu", "", CARD, None, True),
        ("cpu", "", CARD, "13.0", False),
        ("cuda-13.0-sm-8.6", "", CARD, "13.0", True),
        ("cuda-13.0-sm-9.0", "", CARD, "13.0", False),  # another card
        ("cuda-13.0-sm-8.6", "", [], "13.0", True),  # hidden for one command
        ("cuda-13.0-sm-8.6", "0", [], "13.0", False),
        ("cuda-13.0-sm-8.6", "", CARD, None, False),
        ("", "", [], None, False),
        ("cuda-13.0-sm-8.6:cpu", "", CARD, "13.0", True),  # tried in vain
        ("cuda-13.0-sm-8.6:cpu", "1", CARD, "13.0", False),
        ("cuda-13.0-sm-8.6:cpu", "", CARD, "13.1", False),  # another nvcc
        ("cuda-13.0-sm-8.6:cpu", "", [], "13.0", True),
        ("cuda-13.0-sm-8.6:cpu", "0", CARD, "13.0", True),
    ],
)
def test_what_was_built_serves(plans, kept, asked, cards, nvcc, serves):
    nvccs = [plans.Nvcc("/cuda", nvcc)] if nvcc else []
    plan = plans.decide(asked, "2.13.0", "13.0", cards, nvccs)
    assert plans.serves(kept, plan, asked, cards) is serves


def test_toolkits_are_found(plans, tmp_path):
    named = make_toolkit(tmp_path / "named", "12.4")
    usual = make_toolkit(tmp_path / "cuda-13.0", "13.0")
    # One that calls another from a folder of programs, as distributions have it.
    caller = tmp_path / "usr/bin/nvcc"
    caller.parent.mkdir(parents=True)
    caller.write_text(f'#!/bin/sh\nexec {usual}/bin/nvcc "$@"\n')
    caller.chmod(0o755)
    broken = make_toolkit(tmp_path / "cuda-12.0", "12.0")
    (broken / "bin/nvcc").write_text("#!/bin/sh\nexit 1\n")
    environ = dict(CUDA_HOME=str(named), PATH=f"{caller.parent}:/usr/bin:/bin")
    found = plans.find_nvccs(environ, [str(tmp_path / "cuda-*")])
    assert found == [(str(named), "12.4"), (str(usual), "13.0")]
    assert plans.find_nvccs(dict(PATH="/nowhere"), []) == []


def test_headers_that_only_torch_has(plans, tmp_path):
    """A toolkit without its libraries, as of conda, and torch's packages with them."""
    home = make_toolkit(tmp_path / "cuda", "13.0")
    include = tmp_path / "site/nvidia/cu13/include"
    include.mkdir(parents=True)
    (include / "cublas_v2.h").touch()
    plan = plans.Plan(plans.Nvcc(str(home), "13.0"), "8.6", "")
    env = plans.build_environment(plan, dict(CPATH="/mine"), str(tmp_path / "site"))
    assert env["CPATH"] == f"{include}:/mine"
    (home / "include/cublas_v2.h").touch()
    env = plans.build_environment(plan, {}, str(tmp_path / "site"))
    assert "CPATH" not in env
    assert env["FORCE_CUDA"] == "1"
    assert env["TORCH_CUDA_ARCH_LIST"] == "8.6"


def test_the_gpu_is_hidden_from_a_build_for_the_cpu(plans):
    plan = plans.decide("0", "2.13.0", "13.0", CARD, [])
    env = plans.build_environment(plan, dict(FORCE_CUDA="1", FORCE_MLU="1"), "/site")
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["FORCE_CUDA"] == "0"
    assert "FORCE_MLU" not in env
