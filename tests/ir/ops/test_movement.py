"""Inference of data movement: symbolic sizes, content of shape chains, axis rules, errors."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike, Symbol, dim_max, dim_min, exactdiv
from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Content, Graph, Value
from regraft.ir.ops import (
    blocks,
    gathering,
    repeating,
    reshaping,
    scattering,
    selecting,
    sizes,
    slicing,
)
from regraft.ir.ops.reshaping import resolve_reshape
from regraft.ir.ops.slicing import slice_size
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType, TensorType

B, S, H = Dim.of("B"), Dim.of("S"), Dim.of("H")
P = Dim.of(Symbol("P", lo=0))
FAR = 2**63 - 1


def tensor(b: Builder, *shape: DimLike, dtype: DType = DType.F32) -> Value:
    return b.graph.add_input(None, TensorType(dtype, shape))


def known(b: Builder, content: Content) -> Value:
    shape = (len(content),) if isinstance(content, tuple) else ()
    value = b.graph.add_input(None, TensorType(DType.I64, shape))
    value.content = content
    return value


def shape_of(spec: OpSpec, *shape: DimLike, **attrs: Any) -> Any:
    b = Builder(Graph())
    return b.op(spec, tensor(b, *shape), **attrs).shape


@pytest.mark.parametrize(
    ("x", "wanted", "expected"),
    [
        ((B, S, 768), (0, 0, 12, -1), (B, S, 12, 64)),
        ((B, S, 12, 64), (0, 0, -1), (B, S, 768)),
        ((B, S, 768), (B, S, 12, 64), (B, S, 12, 64)),
        ((B * S, 768), (-1, S, 768), (B, S, 768)),
        ((B, S), (-1,), (B * S,)),
        ((B, P, 64), (-1, P, 8, 8), (B, P, 8, 8)),
        ((S,), (4, -1), (4, exactdiv(S, 4))),
        ((2, 3), (6, 1), (6, 1)),
        (None, (2, -1), (2, -1)),  # stays until the data is known
        (None, (0, 5), None),
        ((2,), (1, 0), None),  # nothing to copy: left to run time
        ((0, 4), (0, -1), None),
    ],
)
def test_resolve_reshape(x: Any, wanted: Any, expected: Any) -> None:
    assert resolve_reshape(x, wanted, allow_zero=False) == expected


def test_resolve_reshape_with_allow_zero_keeps_empty_axes() -> None:
    assert resolve_reshape((3, 0), (0, 7), allow_zero=True) == (0, 7)


@pytest.mark.parametrize(
    ("size", "start", "end", "step", "expected"),
    [
        (S, 0, FAR, 1, S),
        (S, 0, 1, 1, 1),  # a symbol of an input is at least 1
        (P, 0, 1, 1, dim_min(P, 1)),
        (S, 1, FAR, 1, S - 1),
        (S, 0, -1, 1, S - 1),
        (S, -1, FAR, 1, 1),
        (S, -1, -FAR, -1, S),
        (512, 0, S, 1, dim_min(512, S)),
        (P + S, P, FAR, 1, S),
        (P + S, 0, P, 1, P),
        (P + S, -S, FAR, 1, S),
        (2 * S, 0, FAR, 2, S),
        (S, 0, FAR, 2, (S + 1) // 2),
        (S, 2, 5, 1, dim_max(0, dim_min(5, S) - dim_min(2, S))),
        (S, S - 2 * H, FAR, 1, None),  # the sign of the start is not known
        (10, 8, 2, -3, 2),
        (10, -20, 5, -1, 0),
        (3, -20, -20, -1, 1),  # starts before the front: at the front
    ],
)
def test_slice_size(size: Any, start: Any, end: Any, step: int, expected: Any) -> None:
    assert slice_size(size, start, end, step) == expected


@pytest.mark.parametrize(
    ("spec", "x", "attrs", "expected"),
    [
        (reshaping.transpose, (B, S, 12, 64), {"perm": (0, 2, 1, 3)}, (B, 12, S, 64)),
        (reshaping.squeeze, (B, 1, S), {"axes": (1,)}, (B, S)),
        (reshaping.squeeze, (1, 3, 1), {}, (3,)),
        (reshaping.squeeze, (B, 1), {}, None),  # B may be 1 and go too
        (reshaping.unsqueeze, (B, S), {"axes": (-1, 0)}, (1, B, S, 1)),
        (repeating.expand, (B, 1, S), {"shape": (B, 8, S)}, (B, 8, S)),
        (repeating.expand, (S,), {"shape": (B, 1)}, (B, S)),
        (repeating.tile, (B, 4), {"repeats": (2, S)}, (2 * B, 4 * S)),
        (repeating.pad, (B, S), {"pads": (0, 1, 0, H)}, (B, S + H + 1)),
        (blocks.depth_to_space, (B, 12, S, 5), {"block_size": 2}, (B, 3, 2 * S, 10)),
        (blocks.space_to_depth, (B, 3, 2 * S, 10), {"block_size": 2}, (B, 12, S, 5)),
        (blocks.center_crop_pad, (B, S), {"shape": (7,), "axes": (-1,)}, (B, 7)),
        (selecting.top_k, (B, S), {"k": 5}, (B, 5)),
        (selecting.arg_max, (B, S), {"axis": 1}, (B, 1)),
        (selecting.arg_min, (B, S), {"axis": 0, "keepdims": False}, (S,)),
    ],
)
def test_result_shape(spec: OpSpec, x: Any, attrs: Any, expected: Any) -> None:
    assert shape_of(spec, *x, **attrs) == expected


def test_split_shares_a_symbolic_axis_evenly_where_it_divides() -> None:
    even = Dim.of(Symbol("E", multiple_of=6))
    assert slicing.equal_split(even, 3) == (exactdiv(even, 3),) * 3
    assert slicing.equal_split(3 * S, 3) == (S, S, S)
    assert slicing.equal_split(7, 3) == (3, 3, 1)
    first, last = slicing.equal_split(S, 2)
    assert (first, last) == ((S + 1) // 2, S - (S + 1) // 2)


def test_concat_adds_sizes_and_prefers_known_ones() -> None:
    b = Builder(Graph())
    joined = b.op(slicing.concat, tensor(b, B, P, 64), tensor(b, 2, S, 64), axis=1)
    assert joined.shape == (2, P + S, 64)
    assert [(a.left, a.right) for a in b.graph.scope.assumptions.values()] == [(B, 2)]


def test_concat_ignores_an_empty_vector() -> None:
    # an empty cache of the first step has rank 1
    b = Builder(Graph())
    assert b.op(slicing.concat, tensor(b, 0), tensor(b, B, 3), axis=0).shape == (B, 3)


def test_data_dependent_axes_have_one_fresh_symbol() -> None:
    b = Builder(Graph())
    node = b.node(selecting.unique, tensor(b, S), num_outputs=4)
    found = node.outputs[0].shape
    assert found is not None
    assert isinstance(found[0], Dim)
    assert found[0] != S
    assert [value.shape for value in node.outputs] == [found, found, (S,), found]
    node.infer()
    assert node.output.shape == found  # inference is repeatable


def test_unknown_operands_give_the_rank_they_can() -> None:
    b = Builder(Graph())
    target = b.graph.add_input(None, TensorType(DType.I64, (3,)))
    x = tensor(b, B, S)
    assert b.op(reshaping.reshape, x, target).rank == 3
    assert b.op(repeating.expand, x, target).rank == 3
    assert b.op(reshaping.unsqueeze, x, target).rank == 5
    unknown = b.graph.add_input(None, TensorType(DType.F32, None))
    assert b.op(gathering.gather, unknown, target).shape is None
    assert b.op(reshaping.transpose, unknown, perm=(1, 0)).rank == 2


def test_expand_keeps_sizes_that_cannot_change() -> None:
    b = Builder(Graph())
    target = b.graph.add_input(None, TensorType(DType.I64, (2,)))
    shape = b.op(repeating.expand, tensor(b, B, 1, 8), target).shape
    assert shape is not None
    assert shape[0] == B
    assert isinstance(shape[1], Dim)
    assert shape[2] == 8


def test_shape_chain_is_known_without_running() -> None:
    # x.view(B, S, -1, 64) as exporters write it
    b = Builder(Graph())
    x = tensor(b, B, S, 768)
    shape = b.op(sizes.shape, x)
    assert shape.content == (B, S, 768)
    batch = b.op(gathering.gather, shape, known(b, 0))
    rows = b.op(slicing.slice_, shape, starts=(1,), ends=(2,), axes=(0,), steps=(1,))
    assert (batch.content, rows.content) == (B, (S,))
    parts = [b.op(reshaping.unsqueeze, batch, axes=(0,)), rows, known(b, (-1, 64))]
    target = b.op(slicing.concat, *parts, axis=0)
    assert target.content == (B, S, -1, 64)
    assert b.op(reshaping.reshape, x, target).shape == (B, S, 12, 64)


def test_content_of_every_part_of_a_split_shape() -> None:
    b = Builder(Graph())
    shape = b.op(sizes.shape, tensor(b, B, S, 8))
    node = b.node(slicing.split, shape, num_outputs=2, sizes=(2, 1), axis=0)
    assert [value.content for value in node.outputs] == [(B, S), (8,)]
    assert b.op(reshaping.squeeze, node.outputs[1], axes=(0,)).content == 8


def test_content_follows_reversed_pads_through_rank_2() -> None:
    # torch writes pads last axis first, and turns them round through a [-1, 2] tensor
    b = Builder(Graph())
    value = b.op(reshaping.reshape, known(b, (S, 1, 0, 2, 0, 0)), shape=(3, 2))
    value = b.op(slicing.slice_, value, starts=(-1,), ends=(-FAR,), axes=(0,), steps=(-1,))
    value = b.op(reshaping.transpose, value, perm=(1, 0))
    assert value.content is None
    value = b.op(reshaping.reshape, value, shape=(6,))
    assert value.content == (0, 0, S, 0, 2, 1)


@pytest.mark.parametrize(
    ("spec", "attrs", "expected"),
    [
        (repeating.tile, {"repeats": (2,)}, (B, S, B, S)),
        (repeating.expand, {"shape": (1,)}, (B, S)),
        (reshaping.transpose, {"perm": (0,)}, (B, S)),
        (slicing.slice_, {"starts": (-1,), "ends": (-9,), "axes": (0,), "steps": (-1,)}, (S, B)),
        (slicing.slice_, {"starts": (P,), "ends": (9,), "axes": (0,), "steps": (1,)}, None),
        (repeating.pad, {"pads": (1, 0)}, (0, B, S)),
    ],
)
def test_content_of_movement(spec: OpSpec, attrs: Any, expected: Any) -> None:
    b = Builder(Graph())
    assert b.op(spec, known(b, (B, S)), **attrs).content == expected


def test_content_of_scatters_into_a_shape() -> None:
    b = Builder(Graph())
    shape, where, new = known(b, (B, S, 8)), known(b, (1,)), known(b, (H,))
    assert b.op(scattering.scatter_elements, shape, where, new).content == (B, H, 8)
    added = b.op(scattering.scatter_elements, shape, where, new, reduction="add")
    assert added.content is None


def test_content_of_gather_with_unknown_or_outside_index_is_unknown() -> None:
    b = Builder(Graph())
    shape = known(b, (B, S))
    assert b.op(gathering.gather, shape, known(b, 2)).content is None
    assert b.op(gathering.gather, shape, known(b, (S,))).content is None
    assert b.op(gathering.gather, shape, known(b, (-1, 0))).content == (S, B)


def test_content_of_size() -> None:
    b = Builder(Graph())
    assert b.op(sizes.size, tensor(b, B, S, 4)).content == 4 * B * S


@pytest.mark.parametrize(
    ("x", "out", "rule"),
    [
        ((B, S, 768), (B, S, 12, 64), "d0 d1 (d2 d3) -> d0 d1 d2 d3"),
        ((B, S, 12, 64), (B, S, 768), "d0 d1 d2 d3 -> d0 d1 (d2 d3)"),
        ((B * S, 8), (B, S, 8), "(d0 d1) d2 -> d0 d1 d2"),
        ((12, 64), (24, 32), "d0 (d1 d2) -> (d0 d1) d2"),
        ((B, 1, 8), (B, 8, 1), "d0 1 d1 -> d0 d1 1"),
        ((4, 6), (6, 4), None),
        ((S,), (4, exactdiv(S, 4)), "(d0 d1) -> d0 d1"),
        ((4, exactdiv(S, 4), 8), (S, 2, 4), "d0 d1 (d2 d3) -> (d0 d1) d2 d3"),
        ((B, S), (H, exactdiv(B * S, H)), None),
    ],
)
def test_reshape_rule_splits_axes_into_common_factors(x: Any, out: Any, rule: str | None) -> None:
    b = Builder(Graph())
    node = b.node(reshaping.reshape, tensor(b, *x), shape=out)
    stated = reshaping.reshape.axes(node)
    assert stated == (None if rule is None else rule.replace(" ->", ", . ->"))


@pytest.mark.parametrize(
    ("spec", "x", "attrs", "message"),
    [
        (reshaping.reshape, (2, 3), {"shape": (4,)}, "6 elements do not fill shape"),
        (reshaping.transpose, (2, 3), {"perm": (0, 0)}, "no permutation"),
        (reshaping.squeeze, (2, 3), {"axes": (1,)}, "axis 1 has size 3"),
        (reshaping.unsqueeze, (2,), {"axes": (0, 0)}, "repeat an axis"),
        (repeating.tile, (2, 3), {"repeats": (2,)}, "1 repeats for 2 axes"),
        (repeating.pad, (2, 3), {"pads": (1, 1)}, "2 pads for 2 axes, expected 4"),
        (selecting.arg_max, (2, 3), {"axis": 2}, "axis 2 is out of range"),
        (blocks.depth_to_space, (2, 4), {"block_size": 2}, "expected 4 axes"),
    ],
)
def test_contradictions_are_errors(spec: OpSpec, x: Any, attrs: Any, message: str) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        shape_of(spec, *x, **attrs)


def test_operands_that_do_not_fit_are_errors() -> None:
    b = Builder(Graph())
    x, index = tensor(b, 2, 3), tensor(b, 2, 3, dtype=DType.I64)
    with pytest.raises(TypeInferenceError, match="axes 1 have sizes 3 and 4"):
        b.op(slicing.concat, x, tensor(b, 2, 4), axis=0)
    with pytest.raises(TypeInferenceError, match="2 axes and indices have 3"):
        b.op(gathering.gather_elements, x, tensor(b, 1, 1, 1, dtype=DType.I64))
    with pytest.raises(TypeInferenceError, match="indices address 3 axes, data has 2"):
        b.op(gathering.gather_nd, x, index)
    with pytest.raises(TypeInferenceError, match="sizes \\[1, 1\\] do not fill axis 1 of size 3"):
        b.node(slicing.split, x, num_outputs=2, sizes=(1, 1), axis=1)
