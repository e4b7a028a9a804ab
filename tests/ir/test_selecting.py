"""Selections move next to the tensor that they select from; the tensor stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.derive import DerivedWeight
from regraft.ir.selecting import selected_first
from regraft.ir.steps import (
    Concat,
    Gather,
    Mul,
    Permute,
    Reshape,
    Slice,
    Source,
    Transpose,
    Tree,
    describe,
)
from regraft.ir.weights import ArrayWeight


def _source(*shape: int, name: str = "w") -> Source:
    array = np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
    return Source(name, ArrayWeight(array))


W = _source(6, 4)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (Gather(Transpose(W, (1, 0)), 1, (0, 2, 5)), Transpose(Gather(W, 0, (0, 2, 5)), (1, 0))),
        (
            Gather(Gather(Transpose(W, (1, 0)), 0, (1, 3)), 1, (0, 2)),
            Transpose(Gather(Gather(W, 0, (0, 2)), 1, (1, 3)), (1, 0)),
        ),
        (Gather(Gather(W, 1, (1, 3)), 0, (0, 2)), Gather(Gather(W, 0, (0, 2)), 1, (1, 3))),
        (Gather(Gather(W, 0, (1, 3, 5)), 0, (0, 2)), Gather(W, 0, (1, 5))),
        (Gather(Slice(W, 0, 2, 6), 0, (0, 3)), Gather(W, 0, (2, 5))),
        (
            Gather(Reshape(W, (3, 2, 4)), 0, (0, 2)),
            Reshape(Gather(W, 0, (0, 1, 4, 5)), (2, 2, 4)),
        ),
        (Gather(Reshape(W, (24,)), 0, (1, 3, 9, 11)), Reshape(
            Gather(Gather(W, 0, (0, 2)), 1, (1, 3)), (4,))),
        (Slice(Transpose(W, (1, 0)), 1, 0, 3), Transpose(Slice(W, 0, 0, 3), (1, 0))),
        (Transpose(Transpose(W, (1, 0)), (1, 0)), W),
        (
            Gather(Concat((W, W), 0), 0, (1, 2, 7)),
            Concat((Gather(W, 0, (1, 2)), Gather(W, 0, (1,))), 0),
        ),
        (Permute(W, 0, (0, 1, 2, 3, 4, 5)), W),
    ],
)  # fmt: skip
def test_selections_stand_at_the_source(tree: Tree, expected: Tree) -> None:
    assert selected_first(tree) == expected
    np.testing.assert_array_equal(DerivedWeight(expected).numpy(), DerivedWeight(tree).numpy())


@pytest.mark.parametrize(
    "tree",
    [
        Gather(W, 0, (0, 0, 1)),  # repeated
        Gather(Reshape(W, (24,)), 0, (0, 5)),  # no grid
        Gather(Reshape(W, (8, 3)), 0, (0, 5)),  # factors that do not nest
        Gather(Concat((W, W), 0), 0, (7, 1)),  # from one part and back
    ],
)
def test_selections_that_are_none_of_the_source_stay(tree: Tree) -> None:
    assert selected_first(tree) == tree


def test_a_scaled_transpose_is_the_transpose_of_what_is_scaled() -> None:
    tree = Mul(Transpose(W, (1, 0)), _source(6, name="s"))
    found = selected_first(tree)
    assert isinstance(found, Transpose)
    np.testing.assert_array_equal(DerivedWeight(found).numpy(), DerivedWeight(tree).numpy())


@st.composite
def _trees(draw: st.DrawFn) -> Tree:
    tree: Tree = _source(*draw(st.sampled_from([(6, 4), (2, 3, 4), (12,), (4, 2, 3)])))
    for _ in range(draw(st.integers(1, 6))):
        shape = describe(tree)[1]
        axis = draw(st.integers(0, len(shape) - 1))
        match draw(st.sampled_from(["transpose", "reshape", "gather", "slice", "join", "mul"])):
            case "transpose":
                tree = Transpose(tree, tuple(draw(st.permutations(range(len(shape))))))
            case "reshape":
                sizes = list(shape)
                if len(sizes) > 1 and draw(st.booleans()):
                    first = sizes.pop(0)
                    sizes[0] *= first
                else:
                    for factor in (2, 3):
                        if sizes[axis] % factor == 0:
                            sizes[axis : axis + 1] = [factor, sizes[axis] // factor]
                            break
                tree = Reshape(tree, tuple(sizes))
            case "gather":
                picks = draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=8))
                tree = Gather(tree, axis, tuple(sorted(set(picks)) if len(picks) > 3 else picks))
            case "slice":
                start = draw(st.integers(0, shape[axis] - 1))
                stop = draw(st.integers(start + 1, shape[axis]))
                tree = Slice(tree, axis, start, stop, draw(st.integers(1, 2)))
            case "join" if shape[axis] < 20:
                tree = Concat((tree, tree), axis)
            case "mul":
                tree = Mul(tree, Reshape(_source(1), ()))
    return tree


@settings(max_examples=300, deadline=None)
@given(_trees())
def test_the_tensor_is_the_same_and_the_form_is_final(tree: Tree) -> None:
    found = selected_first(tree)
    np.testing.assert_array_equal(DerivedWeight(found).numpy(), DerivedWeight(tree).numpy())
    assert selected_first(found) == found
