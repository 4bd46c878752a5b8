"""The state of the random number generators, asked for before every forward pass."""

# ruff: noqa: NPY002  (numpy's global generator is what this is about)
import random

import numpy as np
import pytest
import torch

from amp_hooks.engine.rng import capture_rng, restore_rng, rng_state, set_rng_state


def drawn():
    """What each of them gives next, of numpy in pairs and alone."""
    pair = np.random.standard_normal(3).tolist()
    return [random.random(), *pair, np.random.rand(), torch.rand(()).item()]


@pytest.mark.parametrize("numbers", [0, 1, 2, 7, 700])
@pytest.mark.parametrize("draw", ["rand", "standard_normal"])
def test_what_was_drawn_meanwhile_is_seen(draw, numbers):
    """numpy makes normal numbers in pairs, and keeps the second of them."""
    capture_rng()
    getattr(np.random, draw)(numbers)
    states = capture_rng()
    known = np.random.get_state()
    for ours, numpys in zip(states[1], known):
        assert np.array_equal(ours, numpys)
    expected = drawn()
    restore_rng(states)
    assert drawn() == expected
    set_rng_state(rng_state(states))
    assert drawn() == expected


def test_of_a_normal_number_that_is_used_without_a_trace():
    np.random.standard_normal()
    first = capture_rng()
    np.random.standard_normal()  # the other one of the pair
    second = capture_rng()
    assert first[1][3] == 1
    assert second[1][3] == 0


def test_of_a_number_that_is_given_back():
    """The same words, with and without the other one of the pair."""
    np.random.standard_normal()
    for restores in (restore_rng, lambda states: np.random.set_state(states[1])):
        first = capture_rng()
        assert first[1][3] == 1
        np.random.standard_normal()
        assert capture_rng()[1][3] == 0
        restores(first)
        assert capture_rng()[1][3] == 1


@pytest.mark.skipif(
    not hasattr(np.random, "set_bit_generator"), reason="since numpy 1.24"
)
def test_of_another_generator():
    """It is no Mersenne Twister, so its memory is not looked at."""
    own = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        states = capture_rng()
        expected = drawn()
        restore_rng(states)
        assert drawn() == expected
        assert "numpy" not in rng_state()
        set_rng_state(rng_state())
    finally:
        np.random.set_bit_generator(own)


def test_numpy_is_not_asked_where_nobody_drew(monkeypatch):
    """To ask takes longer than all the others together."""
    np.random.seed(1)
    capture_rng()
    get_state, asked = np.random.get_state, []
    monkeypatch.setattr(np.random, "get_state", lambda: asked.append(1) or get_state())
    for _ in range(5):
        torch.rand(3), random.random()
        capture_rng()
    assert asked == [] or not hasattr(np.random, "get_bit_generator")
    np.random.rand()
    capture_rng()
    assert len(asked) > 0
