"""Importers of comparisons, truth values, bits and selection."""

from __future__ import annotations

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.promotion import promoted
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, functions, logical
from regraft.ir.ops.repeating import expand
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

_ORDERS = {"lt": logical.less, "le": logical.less_or_equal, "gt": logical.greater,
           "ge": logical.greater_or_equal}  # fmt: skip
_LONG_NAMES = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
               "ne": "not_equal"}  # fmt: skip


def _compare(spec: OpSpec, *, negated: bool = False) -> Importer:
    def run(c: CallImport) -> Value:
        a, b = promoted(c, "self", "other")
        if a.dtype is DType.BOOL and spec is not logical.equal:
            a, b = c.cast(a, DType.I32), c.cast(b, DType.I32)  # False < True
        result = c.b.op(spec, a, b)
        return c.b.op(logical.logical_not, result) if negated else result

    return run


def _logical(spec: OpSpec) -> Importer:
    return lambda c: c.b.op(spec, c.operand("self", DType.BOOL), c.operand("other", DType.BOOL))


def _logical_not(c: CallImport) -> Value:
    return c.b.op(logical.logical_not, c.operand("self", DType.BOOL))


def _bitwise(of_ints: OpSpec, of_bools: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        spec = of_bools if c.dtype is DType.BOOL else of_ints
        return c.b.op(spec, c.operand("self"), c.operand("other"))

    return run


def _bitwise_not(c: CallImport) -> Value:
    spec = logical.logical_not if c.dtype is DType.BOOL else logical.bitwise_not
    return c.b.op(spec, c.value("self"))


def _shift(*, left: bool) -> Importer:
    def run(c: CallImport) -> Value:
        if not c.dtype.is_integer:
            raise UnsupportedCallError("a shift of floats")
        return c.b.op(logical.bit_shift, c.operand("self"), c.operand("other"), left=left)

    return run


def _where(c: CallImport) -> Value:
    condition = c.operand("condition", DType.BOOL)
    return c.b.op(logical.where, condition, c.operand("self"), c.operand("other"))


def _masked_fill(c: CallImport) -> Value:
    result = c.b.op(logical.where, c.operand("mask", DType.BOOL), c.operand("value"),
                    c.value("self"))  # fmt: skip
    return result if result.shape == c.shape else c.b.op(expand, result, shape=c.shape)


def _is_close(c: CallImport) -> Value:
    a, b = promoted(c, "self", "other")
    same = c.b.op(logical.equal, a, b)
    if a.dtype is None or not a.dtype.is_float:
        wide = DType.F64 if a.dtype is DType.I64 else DType.F32
        a, b = c.cast(a, wide), c.cast(b, wide)
    dtype = a.dtype or DType.F32
    gap = c.b.op(arithmetic.abs_, c.b.op(arithmetic.sub, a, b))
    slack = c.b.op(arithmetic.mul, c.b.op(arithmetic.abs_, b), c.number(c.attr("rtol"), dtype))
    slack = c.b.op(arithmetic.add, slack, c.number(c.attr("atol"), dtype))
    near = c.b.op(logical.less_or_equal, gap, slack)
    finite = c.b.op(logical.logical_not, c.b.op(functions.is_inf, gap))
    result = c.b.op(logical.logical_or, same, c.b.op(logical.logical_and, near, finite))
    if not c.attr("equal_nan"):
        return result
    both = c.b.op(logical.logical_and, c.b.op(functions.is_nan, a), c.b.op(functions.is_nan, b))
    return c.b.op(logical.logical_or, result, both)


def _signbit(c: CallImport) -> Value:
    x = c.value("self")
    if x.dtype is not None and x.dtype.is_float:
        return _has_minus(c, x)
    return c.b.op(logical.less, c.cast(x, DType.I64), c.number(0, DType.I64))


def _has_minus(c: CallImport, x: Value) -> Value:
    """Returns where floats are negative, zeros included: 1 / -0 is minus infinity."""
    dtype = x.dtype or c.dtype
    zero = c.number(0.0, dtype)
    inverse = c.b.op(arithmetic.div, c.number(1.0, dtype), x)
    is_zero = c.b.op(logical.equal, x, zero)
    return c.b.op(logical.less, c.b.op(logical.where, is_zero, inverse, x), zero)


def _copysign(c: CallImport) -> Value:
    x, other = c.operand("self"), c.operand("other")
    size = c.b.op(arithmetic.abs_, x)
    return c.b.op(logical.where, _has_minus(c, other), c.b.op(arithmetic.neg, size), size)


def _names(name: str) -> tuple[str, ...]:
    return tuple(
        f"aten.{each}.{kind}"
        for each in (name, _LONG_NAMES.get(name))
        if each is not None
        for kind in ("Tensor", "Scalar")
    )


def _bit_names(name: str) -> tuple[str, ...]:
    own = tuple(f"aten.bitwise_{name}.{kind}" for kind in ("Tensor", "Scalar", "Scalar_Tensor"))
    return (*own, f"aten.__{name}__.Tensor", f"aten.__{name}__.Scalar")


def _shift_names(name: str, dunder: str) -> tuple[str, ...]:
    kinds = ("Tensor", "Tensor_Scalar", "Scalar_Tensor")
    own = tuple(f"aten.bitwise_{name}_shift.{kind}" for kind in kinds)
    return (*own, f"aten.__{dunder}__.Tensor", f"aten.__{dunder}__.Scalar")


IMPORTS: tuple[Import, ...] = (
    *(row(_compare(spec), *_names(name)) for name, spec in _ORDERS.items()),
    row(_compare(logical.equal), *_names("eq")),
    row(_compare(logical.equal, negated=True), *_names("ne")),
    row(_logical(logical.logical_and), "aten.logical_and.default"),
    row(_logical(logical.logical_or), "aten.logical_or.default"),
    row(_logical(logical.logical_xor), "aten.logical_xor.default"),
    row(_logical_not, "aten.logical_not.default"),
    row(_bitwise(logical.bitwise_and, logical.logical_and), *_bit_names("and")),
    row(_bitwise(logical.bitwise_or, logical.logical_or), *_bit_names("or")),
    row(_bitwise(logical.bitwise_xor, logical.logical_xor), *_bit_names("xor")),
    row(_bitwise_not, "aten.bitwise_not.default"),
    row(_shift(left=True), *_shift_names("left", "lshift")),
    row(_shift(left=False), *_shift_names("right", "rshift")),
    row(
        _where, "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf",
        "aten.where.Scalar",
    ),
    row(_masked_fill, "aten.masked_fill.Scalar", "aten.masked_fill.Tensor"),
    row(_is_close, "aten.isclose.default"),
    row(_signbit, "aten.signbit.default"),
    row(_copysign, "aten.copysign.Tensor", "aten.copysign.Scalar"),
)  # fmt: skip
