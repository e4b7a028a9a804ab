"""Shape arithmetic: the symbolic content of element-wise results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike, Symbol, dim_max, dim_min
from regraft.ir.graph import Content, Graph, Value
from regraft.ir.ops import activation, arithmetic, cast, fill, functions, logical, rounding
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType, TensorType

S = Dim.of("S")
B = Dim.of("B")
P = Dim.of(Symbol("P", lo=0))
T = Dim.of(Symbol("T", lo=2))  # the exporter states it
D = Dim.of(Symbol("D", lo=1, defined=True))


def known(b: Builder, content: Content, dtype: DType = DType.I64) -> Value:
    """Returns a graph input whose content is known, as after a chain of shape operators."""
    shape = (len(content),) if isinstance(content, tuple) else ()
    value = b.graph.add_input(None, TensorType(dtype, shape))
    value.content = content
    return value


def content_of(spec: OpSpec, *operands: Content, dtype: DType = DType.I64, **attrs: Any) -> Any:
    b = Builder(Graph())
    return b.op(spec, *(known(b, operand, dtype) for operand in operands), **attrs).content


@pytest.mark.parametrize(
    ("spec", "a", "b", "expected"),
    [
        (arithmetic.add, S, 1, S + 1),
        (arithmetic.sub, (S, 4), (1,), (S - 1, 3)),
        (arithmetic.mul, (S, B), 2, (2 * S, 2 * B)),
        (arithmetic.div, 2 * S, 2, S),
        (arithmetic.div, S, 2, S // 2),
        (arithmetic.div, -7, 2, -3),
        (arithmetic.div, 7, -2, -3),
        (arithmetic.div, S - 5, 2, None),  # may be negative: truncation is not floor
        (arithmetic.div, S, P, None),  # the divisor may be 0
        (arithmetic.div, 3, 0, None),
        (arithmetic.min_, S, 0, 0),
        (arithmetic.min_, S, 5, dim_min(S, 5)),
        (arithmetic.max_, S, 0, S),
        (arithmetic.max_, S, 1, None),  # an empty input gives 1
        (arithmetic.max_, D, 1, D),
        (arithmetic.max_, S, B, dim_max(S, B)),
        (logical.equal, (S, -1), (-1, -1), (0, 1)),
        (logical.equal, S, B, None),
        (logical.less, P, 0, 0),
        # whether an input is empty is left to run time, though its types say it is not
        (logical.equal, S, 0, None),
        (logical.equal, S * B, 0, None),
        (logical.less, 0, S, None),
        (logical.less_or_equal, S, 0, None),
        (logical.greater, S, 0, None),
        (logical.less, -1, S, 1),
        (logical.less, S, S + P + 1, 1),
        (logical.greater, D, 0, 1),
        (logical.greater, T, 1, 1),
        (logical.greater_or_equal, P, 0, 1),
        (logical.greater_or_equal, P, 1, None),
    ],
)
def test_binary_content(spec: OpSpec, a: Content, b: Content, expected: Content | None) -> None:
    assert content_of(spec, a, b) == expected


@pytest.mark.parametrize(
    ("a", "b", "fmod", "expected"),
    [(-7, 3, False, 2), (-7, 3, True, -1), (7, -3, True, 1), (-S, 2, True, None)],
)
def test_mod_content_takes_the_sign_of_the_right_operand(
    a: DimLike, b: int, fmod: bool, expected: DimLike | None
) -> None:
    assert content_of(arithmetic.mod, a, b, fmod=fmod) == expected


def test_mod_content_is_symbolic() -> None:
    assert content_of(arithmetic.mod, S, 4) == S % 4


@pytest.mark.parametrize(
    ("spec", "a", "expected"),
    [
        (arithmetic.neg, S, -S),
        (arithmetic.abs_, -S, S),
        (arithmetic.abs_, S - 3, None),
        (arithmetic.sign, S, None),
        (arithmetic.sign, S + 1, 1),
        (arithmetic.sign, P, None),
        (arithmetic.sign, (-3, 0), (-1, 0)),
        (cast.identity, (S, 3), (S, 3)),
    ],
)
def test_unary_content(spec: OpSpec, a: Content, expected: Content | None) -> None:
    assert content_of(spec, a) == expected


def test_integers_wrap_like_the_result_type() -> None:
    assert content_of(arithmetic.add, 200, 100, dtype=DType.U8) == 44
    assert content_of(arithmetic.sub, 1, 2, dtype=DType.U8) == 255
    assert content_of(arithmetic.mul, 100, 2, dtype=DType.I8) == -56


def test_symbolic_sizes_of_narrow_types_are_unknown() -> None:
    assert content_of(arithmetic.add, S, 1, dtype=DType.I8) is None
    assert content_of(arithmetic.sub, S, 5, dtype=DType.U64) is None


@pytest.mark.parametrize(
    ("source", "to", "content", "expected"),
    [
        (DType.I64, DType.I32, (S, (1 << 63) - 1), (S, -1)),
        (DType.I64, DType.F32, S, S),
        (DType.I64, DType.F32, (1 << 24) + 1, None),  # f32 cannot hold it
        (DType.I64, DType.F16, S, None),
        (DType.F32, DType.I64, S, S),
        (DType.I64, DType.BOOL, (S + 1, 0), (1, 0)),
        (DType.I64, DType.BOOL, S, None),
        (DType.I64, DType.BOOL, P, None),
        (DType.BOOL, DType.I64, (1, 0), (1, 0)),
    ],
)
def test_cast_content(source: DType, to: DType, content: Content, expected: Content) -> None:
    assert content_of(cast.cast, content, dtype=source, to=to) == expected


@pytest.mark.parametrize(
    ("scale", "spec", "expected"),
    [
        (2.0, rounding.floor, 2 * S),
        (0.5, rounding.floor, S // 2),
        (0.5, rounding.ceil, (S + 1) // 2),
        (1.5, rounding.floor, (3 * S) // 2),
        (0.1, rounding.floor, None),  # not dyadic: the product is rounded before the floor
        (0.5, rounding.round_, None),
    ],
)
def test_sizes_scaled_in_floats(scale: float, spec: OpSpec, expected: DimLike | None) -> None:
    b = Builder(Graph())
    size = b.op(cast.cast, known(b, S), to=DType.F32)
    scaled = b.op(arithmetic.mul, size, b.constant(np.float32(scale)))
    assert b.op(cast.cast, b.op(spec, scaled), to=DType.I64).content == expected


def test_sizes_divided_in_floats() -> None:
    b = Builder(Graph())
    size = b.op(cast.cast, known(b, (S, P)), to=DType.F32)
    quotient = b.op(arithmetic.div, size, b.constant(np.array([2, 4], np.float32)))
    assert quotient.content is None
    assert b.op(rounding.ceil, quotient).content == ((S + 1) // 2, (P + 3) // 4)
    assert b.op(cast.cast, quotient, to=DType.I64).content == (S // 2, P // 4)


def test_sqrt_content_of_a_square() -> None:
    assert content_of(functions.sqrt, 64, dtype=DType.F32) == 8
    assert content_of(functions.sqrt, 63, dtype=DType.F32) is None


def test_where_content_of_an_expand_shape() -> None:
    b = Builder(Graph())
    wanted = b.constant(np.array([-1, 4, -1], np.int64))
    condition = b.op(logical.equal, wanted, b.constant(np.array(-1)))
    assert b.op(logical.where, condition, known(b, (S, 1, B)), wanted).content == (S, 4, B)


def test_where_content_needs_only_the_chosen_side() -> None:
    b = Builder(Graph())
    unknown = b.graph.add_input(None, TensorType(DType.I64, (2,)))
    condition = b.constant(np.array([True, True]))
    assert b.op(logical.where, condition, known(b, (S, B)), unknown).content == (S, B)
    assert b.op(logical.where, condition, unknown, known(b, (S, B))).content is None
    one = b.op(logical.where, condition, known(b, (S,)), unknown)
    assert one.content is None  # the result repeats the element


def test_logical_content() -> None:
    assert content_of(logical.logical_and, (1, 1), (0, 1), dtype=DType.BOOL) == (0, 1)
    assert content_of(logical.logical_or, (0, 0), (0, 1), dtype=DType.BOOL) == (0, 1)
    assert content_of(logical.logical_xor, (1, 1), (0, 1), dtype=DType.BOOL) == (1, 0)
    assert content_of(logical.logical_not, (1, 0), dtype=DType.BOOL) == (0, 1)


def test_clip_content() -> None:
    assert content_of(activation.clip, P, min=1) == dim_max(P, 1)
    assert content_of(activation.clip, (S, 9), min=0, max=4) == (dim_min(S, 4), 4)


def test_range_length_and_content() -> None:
    b = Builder(Graph())
    positions = b.op(fill.range_, dtype=DType.I64, start=P, limit=P + S, delta=1)
    assert positions.shape == (S,)
    assert positions.content is None
    steps = b.op(fill.range_, dtype=DType.I64, start=0, limit=S, delta=2)
    assert steps.shape == ((S + 1) // 2,)
    few = b.op(fill.range_, dtype=DType.I32, start=3, limit=-3, delta=-2)
    assert few.shape == (3,)
    assert few.content == (3, 1, -1)
    offset = b.op(fill.range_, dtype=DType.I64, start=S, limit=S + 2, delta=1)
    assert offset.content == (S, S + 1)


def test_range_of_float_constants_has_a_static_length() -> None:
    b = Builder(Graph())
    operands = [b.constant(np.float32(item)) for item in (0.0, 1.0, 0.3)]
    assert b.op(fill.range_, *operands, dtype=DType.F32).shape == (4,)


def test_constant_of_shape_content() -> None:
    b = Builder(Graph())
    ones = b.op(fill.constant_of_shape, shape=(3,), value=np.array([1], np.int64))
    assert ones.content == (1, 1, 1)
    kept = b.op(fill.constant_of_shape, shape=(2,), value=np.array([True]))
    assert kept.content == (1, 1)
    assert b.op(fill.constant_of_shape, shape=(S,), value=np.array([1])).content is None
    assert b.op(fill.constant_of_shape, shape=(2,), value=np.zeros(1, np.float32)).content is None
