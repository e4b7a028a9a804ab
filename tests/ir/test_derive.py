"""Derived weights: every step against numpy, windows, the cache, spilling and inversion."""

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight, WeightCache, derive
from regraft.ir.errors import UnsupportedError
from regraft.ir.origins import Relation, origins_of, restore
from regraft.ir.spill import SpillFile
from regraft.ir.steps import (
    Add,
    Cast,
    Concat,
    Div,
    Gather,
    Literal,
    MatMul,
    Mul,
    Permute,
    Quantize,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Transpose,
    Tree,
    digest,
)
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight

RNG = np.random.default_rng(0)
A = RNG.standard_normal((4, 6)).astype(np.float32)
B = RNG.standard_normal((4, 6)).astype(np.float32)
T = RNG.standard_normal((2, 3, 4)).astype(np.float16)
S = np.float32([0.5, 0.25, 0.125, 1.0]).reshape(4, 1)


class CountingWeight:
    """Counts reads and remembers nothing else."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array, self.num_reads = array, 0
        self.dtype, self.shape, self.nbytes = DType.F32, array.shape, array.nbytes

    def numpy(self) -> np.ndarray[Any, Any]:
        self.num_reads += 1
        return self.array


def src(array: np.ndarray[Any, Any], name: str = "w") -> Source:
    return Source(name, ArrayWeight(array))


CASES: dict[str, tuple[Tree, np.ndarray[Any, Any]]] = {
    "source": (src(A), A),
    "literal": (Literal.of(A), A),
    "slice": (Slice(src(A), 1, 1, 6, 2), A[:, 1:6:2]),
    "empty slice": (Slice(src(A), 0, 2, 2), A[2:2]),
    "gather": (Gather(src(A), 1, (5, 0, 3, 3)), A[:, [5, 0, 3, 3]]),
    "permute": (Permute(src(A), 0, (3, 1, 0, 2)), A[[3, 1, 0, 2]]),
    "transpose": (Transpose(src(T), (2, 0, 1)), T.transpose(2, 0, 1)),
    "reshape": (Reshape(src(T), (6, 4)), T.reshape(6, 4)),
    "reshape across rows": (Reshape(src(A), (3, 8)), A.reshape(3, 8)),
    "reshape to scalar": (Reshape(Slice(Slice(src(A), 0, 1, 2), 1, 1, 2), ()), A[1, 1]),
    "concat": (Concat((src(A), src(B, "v"), Literal.of(A)), 1), np.concatenate([A, B, A], 1)),
    "cast": (Cast(src(A), DType.BF16), A.astype(ml_dtypes.bfloat16)),
    "mul": (Mul(src(A), Literal.of(S)), A * S),
    "mul wider than the first": (Mul(Literal.of(S), src(A)), S * A),
    "add in f16": (
        Add(src(T), Literal.of(np.float16([1, 2, 3, 4]))),
        (T.astype(np.float32) + np.float32([1, 2, 3, 4])).astype(np.float16),
    ),
    "matmul": (MatMul(src(A), Transpose(src(B, "v"), (1, 0))), A @ B.T),
    "div": (Div(src(A), Literal.of(S)), A / S),
    "sqrt": (Sqrt(src(A * A)), np.sqrt(A * A)),
    "sqrt in f16": (
        Sqrt(src(np.abs(T))),
        np.sqrt(np.abs(T).astype(np.float32)).astype(np.float16),
    ),
    "rounded once": (
        Cast(Div(Cast(src(A), DType.F64), Literal.of(S.astype(np.float64) / 3)), DType.F32),
        (A.astype(np.float64) / (S.astype(np.float64) / 3)).astype(np.float32),
    ),
    "batched matmul": (
        MatMul(src(T), Literal.of(T[0].T)),
        (T.astype(np.float32) @ T[0].T.astype(np.float32)).astype(np.float16),
    ),
    "quantize": (
        Quantize(src(A), Literal.of(S), Literal.of(np.uint8([[128]])), DType.U8),
        np.clip(np.rint(A / S) + 128, 0, 255).astype(np.uint8),
    ),
    "quantize to f8": (
        Quantize(src(A * 1e4), Literal.of(S), None, DType.F8E4M3FN),
        np.clip(A * 1e4 / S, -448, 448).astype(ml_dtypes.float8_e4m3fn),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_step_evaluates_as_numpy_does(name: str) -> None:
    tree, expected = CASES[name]
    weight = DerivedWeight(tree)
    assert weight.shape == expected.shape
    assert weight.numpy().dtype == expected.dtype == weight.dtype.numpy
    np.testing.assert_array_equal(weight.numpy(), expected)


@pytest.mark.parametrize("name", CASES)
def test_every_window_equals_the_part_of_the_whole(name: str) -> None:
    tree, _ = CASES[name]
    weight = DerivedWeight(tree, WeightCache(10_000))
    whole = weight.numpy().astype(np.float64)
    rng = np.random.default_rng(1)
    for _ in range(10):
        spans = [sorted(rng.integers(0, size + 1, 2).tolist()) for size in weight.shape]
        window = tuple((first, last) for first, last in spans)
        part = whole[tuple(slice(*span) for span in window)]
        # a matrix product of fewer rows may sum in another order: 6 terms of f32
        np.testing.assert_allclose(
            weight.read(window).astype(np.float64), part, rtol=6e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Slice(src(A), 2, 0, 1), "slice: axis 2 is outside rank 2"),
        (Slice(src(A), 0, 1, 9), "slice: 1:9:1 is no range of 4 positions"),
        (Gather(src(A), 0, (4,)), "gather: a position is outside 0..3"),
        (Permute(src(A), 0, (0, 0, 1, 2)), "permute: not an order of 4 positions"),
        (Transpose(src(A), (0, 0)), "transpose: [0, 0] is no order of 2 axes"),
        (Reshape(src(A), (5, 5)), "reshape: [4, 6] does not fit [5, 5]"),
        (Concat((src(A), src(T)), 0), "concat: the parts differ beside the axis"),
        (Mul(src(A), src(T)), "mul: [4, 6] and [2, 3, 4] do not broadcast"),
        (MatMul(src(A), src(B)), "matmul: [4, 6] times [4, 6]"),
        (Quantize(src(S), src(A), None, DType.I8), "the scale has more axes or sizes"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(tree: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DerivedWeight(tree)


def test_slice_of_concat_reads_only_its_part() -> None:
    left, right = CountingWeight(A), CountingWeight(B)
    tree = Slice(Concat((Source("l", left), Source("r", right)), 0), 0, 0, 3)
    np.testing.assert_array_equal(DerivedWeight(tree).numpy(), A[:3])
    assert (left.num_reads, right.num_reads) == (1, 0)


def test_cache_keeps_computed_tensors_within_its_bytes() -> None:
    counting = CountingWeight(A)
    cache = WeightCache(2 * A.nbytes)
    trees = [Mul(Source("w", counting), Literal.of(np.float32(i))) for i in range(3)]
    weights = [DerivedWeight(tree, cache) for tree in trees]
    for weight in weights:
        weight.numpy()
    assert (counting.num_reads, cache.num_bytes) == (3, 2 * A.nbytes)
    weights[2].numpy()
    assert counting.num_reads == 3
    weights[0].numpy()  # dropped as the least recently used
    assert counting.num_reads == 4


def test_cache_does_not_keep_what_exceeds_it() -> None:
    cache = WeightCache(A.nbytes - 1)
    DerivedWeight(Mul(src(A), src(B)), cache).numpy()
    assert cache.num_bytes == 0


def test_derive_continues_the_steps_of_a_derived_weight() -> None:
    first = DerivedWeight(Slice(derive("w", ArrayWeight(A)), 0, 0, 2))
    assert derive("w", first) is first.tree


def test_digest_tells_structures_apart() -> None:
    trees = [tree for tree, _ in CASES.values()]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest(Slice(src(A), 0, 0, 2)) == digest(Slice(src(B), 0, 0, 2))  # same name and type
    assert digest(Slice(src(A), 0, 0, 2)) != digest(Slice(src(A), 0, 0, 3))
    assert digest(Literal.of(A)) != digest(Literal.of(B))


def test_origins_map_both_ways() -> None:
    heads = Reshape(Gather(Reshape(src(A), (2, 2, 6)), 0, (1,)), (2, 6))
    tree = Transpose(Concat((heads, Permute(src(B, "v"), 0, (3, 2, 1, 0))), 0), (1, 0))
    derived = DerivedWeight(tree).numpy()
    origins = origins_of(tree)
    assert [origin.source for origin in origins] == ["w", "v"]
    w, v = np.zeros_like(A), np.zeros_like(B)
    restore(origins[0], w, derived)
    restore(origins[1], v, derived)
    np.testing.assert_array_equal(w, np.concatenate([np.zeros_like(A[:2]), A[2:]]))
    np.testing.assert_array_equal(v, B)


def test_computed_tensor_is_made_in_blocks_and_each_source_loaded_once() -> None:
    rows = RNG.standard_normal((12001, 300)).astype(np.float32)  # 14.4 MB: four blocks
    counting = CountingWeight(rows)
    tree = Cast(
        Mul(Cast(Source("w", counting), DType.F64), Literal.of(np.ones(300) / 3)), DType.F32
    )
    weight = DerivedWeight(tree)
    np.testing.assert_array_equal(weight.numpy(), (rows / np.float64(3)).astype(np.float32))
    assert counting.num_reads == 1
    assert [block.stop for block, _ in weight.blocks()][-1] == 12001


WIDE = Cast(src(A), DType.F64)
GAIN = src(S.reshape(4), "gain")
SCALED = Cast(
    Mul(Permute(WIDE, 0, (3, 1, 0, 2)), Reshape(Cast(GAIN, DType.F64), (4, 1))), DType.F32
)


def test_origins_of_changed_values_keep_positions() -> None:
    w, gain = origins_of(Slice(SCALED, 0, 1, 3))
    assert [w.source, gain.source] == ["w", "gain"]
    assert w.relation is gain.relation is Relation.POSITIONS
    assert str(w.relation) == "positions only"
    assert w.reason == "mul changes values"
    np.testing.assert_array_equal(w.target, np.arange(12))
    np.testing.assert_array_equal(w.positions, [*range(6, 12), *range(6)])  # rows 1 and 0
    np.testing.assert_array_equal(gain.positions, [1] * 6 + [2] * 6)  # a gain per row
    with pytest.raises(UnsupportedError, match="`w` cannot be restored: mul changes values"):
        restore(w, A.copy(), A[1:3])


def test_one_source_has_an_origin_per_relation() -> None:
    origins = origins_of(Concat((SCALED, src(B, "v"), Slice(src(A), 0, 0, 2)), 0))
    found = [(o.source, str(o.relation), o.target.size) for o in origins]
    assert sorted(found) == [
        ("gain", "positions only", 24),
        ("v", "exact", 24),
        ("w", "exact", 12),
        ("w", "positions only", 24),
    ]


@pytest.mark.parametrize(
    ("tree", "relation", "reason"),
    [
        (Cast(src(A), DType.F64), Relation.EXACT, ""),
        (Cast(src(A), DType.F16), Relation.POSITIONS, "cast changes values"),
        (Cast(Cast(src(A), DType.F64), DType.F32), Relation.POSITIONS, "cast changes values"),
        (Add(Literal.of(A), src(A)), Relation.POSITIONS, "add changes values"),
        (Sqrt(src(A)), Relation.POSITIONS, "sqrt changes values"),
        (Gather(src(A), 1, (0, 0)), Relation.POSITIONS, "the result repeats positions"),
        (MatMul(src(A), Literal.of(B.T)), Relation.MIXED, "matmul mixes positions"),
        (
            Mul(MatMul(src(A), Literal.of(B.T)), Literal.of(S)),
            Relation.MIXED,
            "matmul mixes positions",
        ),
    ],
)
def test_relation_says_what_corresponds(tree: Tree, relation: Relation, reason: str) -> None:
    (origin,) = origins_of(tree)
    assert (origin.relation, origin.reason) == (relation, reason)
    assert (origin.target.size > 0) == (relation is not Relation.MIXED)


def test_spill_file_maps_what_it_wrote_and_is_deleted(tmp_path: Path) -> None:
    codes = np.array([1, -2, 7], ml_dtypes.int4)
    with SpillFile(tmp_path) as spill:
        weights = [spill.append(A), spill.append(codes), spill.append(T)]
        assert all(isinstance(w, MappedWeight) and w.offset % 64 == 0 for w in weights)
        for weight, array in zip(weights, (A, codes, T), strict=True):
            np.testing.assert_array_equal(weight.numpy(), array)
        assert spill.path.exists()
    assert list(tmp_path.iterdir()) == []
    spill.close()
