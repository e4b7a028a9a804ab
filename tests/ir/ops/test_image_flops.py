"""FLOPs of image operators are counted from their taps."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.flops import flops_of
from regraft.ir.ops.grid_sample import grid_sample
from regraft.ir.ops.resize import resize
from regraft.soundness import make_node


@pytest.mark.parametrize(("mode", "taps"), [("nearest", 0), ("linear", 2), ("cubic", 4)])
def test_resize_counts_taps_of_each_resized_axis(mode: str, taps: int) -> None:
    attrs = {"axes": (2, 3), "scales": (2.0, 3.0), "mode": mode}
    node = make_node(resize, [np.zeros((1, 2, 4, 5))], attrs)
    assert flops_of(node) == (2 * 8 * 15) * 2 * taps * 2


@pytest.mark.parametrize(("mode", "taps"), [("nearest", 0), ("linear", 4), ("cubic", 16)])
def test_grid_sample_counts_taps_of_all_axes(mode: str, taps: int) -> None:
    node = make_node(grid_sample, [np.zeros((1, 3, 4, 5)), np.zeros((1, 6, 7, 2))], {"mode": mode})
    assert flops_of(node) == (3 * 6 * 7) * 2 * taps
