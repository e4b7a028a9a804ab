"""Index maps as loops, and gathers that prune by them."""

from typing import Any

import numpy as np
import pytest

from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.analysis.coupling.index_maps import Loop, loops_of
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.checking import TOLERANCE, prune_and_compare

SHUFFLE = np.arange(12).reshape(3, 4).T.reshape(-1)
REPEAT = np.repeat(np.arange(12), 2)
TILED = np.tile(np.arange(12), 3)
HEADS = np.repeat(np.arange(12).reshape(3, 4), 2, 0).reshape(-1)
GRID = np.arange(12).reshape(3, 4)
TURNED = np.arange(12).reshape(2, 2, 3).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.arange(12), [(0, 12, 1)]),
        (SHUFFLE, [(0, 4, 1), (0, 3, 4)]),
        (REPEAT, [(0, 12, 1), (0, 2, 0)]),
        (TILED, [(0, 3, 0), (0, 12, 1)]),
        (HEADS, [(0, 3, 4), (0, 2, 0), (0, 4, 1)]),
        (GRID, [(0, 3, 4), (1, 4, 1)]),
        (TURNED, [(0, 3, 1), (1, 2, 6), (2, 2, 3)]),
    ],
)
def test_maps_that_count_in_loops(index: Any, expected: Any) -> None:
    assert loops_of(index, 12) == [Loop(*item) for item in expected]


@pytest.mark.parametrize(
    "index",
    [
        np.arange(12)[::-1], np.arange(11), np.arange(12) + 1, np.array([0, 2, 1, 3, 4, 5, 6, 7]),
        np.array([[0, 1], [1, 2]]), np.zeros((0,), np.int64), np.array([0, 1, 2, 0]),
    ],
)  # fmt: skip
def test_maps_that_do_not(index: Any) -> None:
    assert loops_of(index, 12) is None


def _gathering(index: Any, down: int) -> Module:
    """A product whose 12 columns are gathered, and a product of what comes out."""
    values = ", ".join(map(str, index.reshape(-1).tolist()))
    dims = ", ".join(map(str, index.shape))
    flat = "" if index.ndim == 1 else f"%f = reshape(%g) {{shape = [B, S, {index.size}]}}"
    text = f"""
        %h = matmul(%x, %up)
        %i = literal i64[{dims}] [{values}]
        %g = gather(%h, %i) {{axis = 2}}
        {flat}
        %y = matmul(%{"f" if flat else "g"}, %down)
    """
    return spelled(text, weights={"up": "f32[16, 12]", "down": f"f32[{down}, 5]"})


@pytest.mark.parametrize("index", [SHUFFLE, REPEAT, TILED, HEADS, GRID, TURNED])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_gathered_prunes_as_the_masked_model(index: Any, seed: int) -> None:
    module = _gathering(index, index.size)
    sizes = [group.size for group in Coupling(module).groups]
    assert sizes
    assert np.prod(sizes) == 12  # every factor of the twelve columns may lose positions
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)}
    outcome = prune_and_compare(module, x, seed)
    assert outcome.error <= TOLERANCE


def test_a_map_without_order_pins_what_it_reads() -> None:
    rng = np.random.default_rng(0)
    index = rng.permutation(12).reshape(3, 4)
    coupling = Coupling(_gathering(index, 12))
    assert all(("up", 1) not in group.weights for group in coupling.groups)
    assert any(("up", 1) in pinned.weights for pinned in coupling.pinned)
