import pytest

from amp_hooks.engine.headroom import headroom_bits


def test_headroom():
    assert headroom_bits(65504.0) == 0.0
    assert headroom_bits(65504.0 * 4) == -2.0
    assert headroom_bits(0.0) == pytest.approx(24.0, abs=1e-3)
    assert headroom_bits(2.0, limit=2.0**127) == 126.0
