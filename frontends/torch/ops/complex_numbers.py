"""Complex tensors as pairs: `f32[..., 2]` holds real and imaginary parts along a last axis.

The node that makes a pair is marked, so that every importer that meets one later takes its complex
form, or says that it has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regraft.frontends.torch.call import (
    CallImport,
    Import,
    Imported,
    Importer,
    UnsupportedCallError,
    row,
)
from regraft.frontends.torch.ops.shape import shape_of
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Key, Value
from regraft.ir.ops import arithmetic, functions
from regraft.ir.ops.cast import identity
from regraft.ir.ops.reduce import reduce_l2
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.ops.slicing import concat, split
from regraft.ir.types import DType, TensorType

_PAIR: Key[bool] = Key("torch.complex", copies=False)
_REAL = {DType.C64: DType.F32, DType.C128: DType.F64}


def is_complex(value: Any) -> bool:
    """Returns whether an argument is a complex tensor."""
    if not isinstance(value, Value):
        return False
    node = value.producer
    return (node is not None and node.get_meta(_PAIR) is True) or value.dtype in _REAL


def rank_of(value: Value) -> int:
    """Returns the number of axes of a tensor, without the one that holds the parts of a pair."""
    is_pair = is_complex(value) and value.dtype not in _REAL
    return len(shape_of(value)) - is_pair


def marked(value: Value) -> Value:
    """Returns a pair, marked as a complex tensor."""
    if value.producer is None:
        raise AssertionError("a node makes the pair")
    value.producer.set_meta(_PAIR, True)
    return value


def pair_of(c: CallImport, value: Value) -> Value:
    """Returns real and imaginary parts along a last axis; those of a real tensor have 0."""
    if value.dtype in _REAL:
        array = constant_of(value, 1 << 34) if is_constant(value) else None
        if array is None:
            raise UnsupportedCallError("an input of complex numbers")
        parts = np.stack([array.real, array.imag], axis=-1)
        return marked(c.b.constant(parts, _REAL[value.dtype], name="complex"))
    if is_complex(value):
        return value
    dtype = _real_dtype(c)
    real = c.b.op(unsqueeze, c.cast(value, dtype), axes=(value.rank or 0,))
    zero = c.b.op(arithmetic.mul, real, c.number(0, dtype))
    return marked(c.b.op(concat, real, zero, axis=value.rank or 0))


def _real_dtype(c: CallImport) -> DType:
    return _REAL.get(c.dtype, c.dtype)


def parts_of(c: CallImport, pair: Value) -> Sequence[Value]:
    """Returns real and imaginary part, each with a last axis of size 1."""
    return c.b.multi(split, pair, num_outputs=2, axis=len(shape_of(pair)) - 1, sizes=(1, 1))


def joined_parts(c: CallImport, real: Value, imaginary: Value) -> Value:
    """Returns the pair of two parts that have a last axis of size 1."""
    return marked(c.b.op(concat, real, imaginary, axis=len(shape_of(real)) - 1))


def _with_axis(c: CallImport, value: Value) -> Value:
    return c.b.op(unsqueeze, value, axes=(value.rank or 0,))


def _without_axis(c: CallImport, value: Value) -> Value:
    return c.b.op(squeeze, value, axes=(len(shape_of(value)) - 1,))


# -- between real and complex -------------------------------------------------------------------


def _view_as_complex(c: CallImport) -> Value:
    return marked(c.b.op(identity, c.value("self")))  # the tensor itself stays real


def _view_as_real(c: CallImport) -> Value:
    return c.b.op(identity, pair_of(c, c.value("self")))


def _complex(c: CallImport) -> Value:
    return joined_parts(c, _with_axis(c, c.value("real")), _with_axis(c, c.value("imag")))


def _polar(c: CallImport) -> Value:
    size, angle = _with_axis(c, c.value("abs")), _with_axis(c, c.value("angle"))
    real = c.b.op(arithmetic.mul, size, c.b.op(functions.cos, angle))
    return joined_parts(c, real, c.b.op(arithmetic.mul, size, c.b.op(functions.sin, angle)))


def _part(idx: int) -> Importer:
    def run(c: CallImport) -> Value:
        return _without_axis(c, parts_of(c, pair_of(c, c.value("self")))[idx])

    return run


def _size(c: CallImport) -> Value:
    pair = pair_of(c, c.value("self"))
    return c.b.op(reduce_l2, pair, axes=(len(shape_of(pair)) - 1,), keepdims=False)


def _conjugate(c: CallImport) -> Value:
    real, imaginary = parts_of(c, pair_of(c, c.value("self")))
    return joined_parts(c, real, c.b.op(arithmetic.neg, imaginary))


# -- arithmetic ---------------------------------------------------------------------------------


def _operand(c: CallImport, name: str) -> tuple[Any, bool]:
    """Returns a pair, or a real factor with a last axis of size 1, and which of both it is."""
    found = c.args[name]
    if is_complex(found):
        return pair_of(c, found), True
    if isinstance(found, Value):
        return _with_axis(c, c.cast(found, _real_dtype(c))), False
    if isinstance(found, complex):
        return c.b.constant(np.array([found.real, found.imag]), _real_dtype(c)), True
    return c.number(found, _real_dtype(c)), False


def _multiply(c: CallImport) -> Value:
    (a, a_complex), (b, b_complex) = _operand(c, "self"), _operand(c, "other")
    if not (a_complex and b_complex):
        return marked(c.b.op(arithmetic.mul, a, b))
    return product_of(c, a, b)


def product_of(c: CallImport, a: Value, b: Value) -> Value:
    """Returns the product of two pairs."""
    (ar, ai), (br, bi) = parts_of(c, a), parts_of(c, b)
    mul = arithmetic.mul
    real = c.b.op(arithmetic.sub, c.b.op(mul, ar, br), c.b.op(mul, ai, bi))
    return joined_parts(c, real, c.b.op(arithmetic.add, c.b.op(mul, ar, bi), c.b.op(mul, ai, br)))


def _divide(c: CallImport) -> Value:
    (a, a_complex), (b, b_complex) = _operand(c, "self"), _operand(c, "other")
    if not b_complex:
        return marked(c.b.op(arithmetic.div, a, b))
    if not a_complex:
        raise UnsupportedCallError("a real number divided by a complex one")
    real, imaginary = parts_of(c, b)
    across = product_of(c, a, joined_parts(c, real, c.b.op(arithmetic.neg, imaginary)))
    square = c.b.op(arithmetic.add, c.b.op(arithmetic.mul, real, real),
                    c.b.op(arithmetic.mul, imaginary, imaginary))  # fmt: skip
    return marked(c.b.op(arithmetic.div, across, square))


def _sum(spec: Any) -> Importer:
    def run(c: CallImport) -> Value:
        if c.attr("alpha") not in (None, 1):
            raise UnsupportedCallError("a scaled sum of complex numbers")
        pairs = []
        for name in ("self", "other"):
            found = c.args[name]
            if not isinstance(found, Value):
                found = c.b.constant(np.array([complex(found).real, complex(found).imag]),
                                     _real_dtype(c))  # fmt: skip
                pairs.append(found)
            else:
                pairs.append(pair_of(c, found))
        return marked(c.b.op(spec, *pairs))

    return run


def _negate(c: CallImport) -> Value:
    return marked(c.b.op(arithmetic.neg, pair_of(c, c.value("self"))))


def _to(c: CallImport) -> Value:
    pair = pair_of(c, c.value("self"))
    if c.dtype in _REAL:
        wanted = _REAL[c.dtype]
        return pair if pair.dtype is wanted else marked(c.cast(pair, wanted))
    return c.cast(_without_axis(c, parts_of(c, pair)[0]), c.dtype)


# -- movement: the real form with one more axis at the end --------------------------------------

_AXIS_NAMES = ("dim", "dim0", "dim1", "dims", "axis0", "axis1", "source", "destination")


def _lifted(importer: Importer) -> Importer:
    """Returns an importer of pairs that treats the last axis as one more axis of the tensor."""

    def run(c: CallImport) -> Imported:
        args = {name: _lifted_argument(c, arg) for name, arg in c.args.items()}
        rank = _complex_rank(args) + ("unsqueeze" in c.target or "stack" in c.target)
        for name in _AXIS_NAMES:
            if name in args and args[name] is not None:
                args[name] = _from_front(args[name], rank)
        if "permute" in c.target:
            args["dims"] = (*args["dims"], rank)
        if "dim" in c.args and not isinstance(c.args["dim"], int) and not c.args["dim"]:
            args["dim"] = tuple(range(rank))  # all axes are all but that of the parts
        if "repeat" in c.target and isinstance(args["repeats"], tuple):
            args["repeats"] = (*args["repeats"], 1)
        results = [_pair_type(result) for result in c.results]
        made = importer(replace(c, args=args, results=results))
        if isinstance(made, Value):
            return _marked_or_same(made)
        return [None if value is None else _marked_or_same(value) for value in made]

    return run


def _marked_or_same(value: Value) -> Value:
    return value if is_complex(value) else marked(value)


def _lifted_argument(c: CallImport, arg: Any) -> Any:
    if is_complex(arg):
        return pair_of(c, arg)
    if isinstance(arg, tuple) and any(is_complex(item) for item in arg):
        return tuple(pair_of(c, item) for item in arg)
    return arg


def _complex_rank(args: Mapping[str, Any]) -> int:
    for arg in args.values():
        first = arg[0] if isinstance(arg, tuple) and arg else arg
        if is_complex(first):
            return len(shape_of(first)) - 1
    raise AssertionError("a lifted call has a complex operand")


def _from_front(axes: Any, rank: int) -> Any:
    if isinstance(axes, tuple):
        return tuple(_from_front(axis, rank) for axis in axes)
    return axes + rank if axes < 0 else axes


def _pair_type(type_: TensorType) -> TensorType:
    dtype = type_.dtype
    if dtype not in _REAL or type_.shape is None:
        raise UnsupportedCallError("a real result of complex numbers")
    return TensorType(_REAL[dtype], (*type_.shape, 2))


_MOVED = frozenset(
    f"aten.{name}"
    for name in (
        "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints",
        "unflatten.int", "permute.default", "transpose.int", "movedim.int", "movedim.intlist",
        "squeeze.dim", "squeeze.dims", "unsqueeze.default", "slice.Tensor", "select.int",
        "narrow.default", "split.Tensor", "split_with_sizes.default", "chunk.default",
        "unbind.int", "cat.default", "stack.default", "expand.default", "expand_as.default",
        "repeat.default", "flip.default", "roll.default", "index.Tensor", "index_select.default",
        "embedding.default", "clone.default", "contiguous.default", "detach.default",
        "alias.default", "lift_fresh_copy.default", "sum.dim_IntList", "mean.dim",
    )
)  # fmt: skip

FORMS: Mapping[str, Importer] = {
    "aten.abs.default": _size,
    "aten.mul.Tensor": _multiply,
    "aten.mul.Scalar": _multiply,
    "aten.div.Tensor": _divide,
    "aten.div.Scalar": _divide,
    "aten.add.Tensor": _sum(arithmetic.add),
    "aten.add.Scalar": _sum(arithmetic.add),
    "aten.sub.Tensor": _sum(arithmetic.sub),
    "aten.sub.Scalar": _sum(arithmetic.sub),
    "aten.neg.default": _negate,
    "aten.resolve_conj.default": lambda c: pair_of(c, c.value("self")),
    **dict.fromkeys(
        ("aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten._to_copy.default"), _to
    ),
}
"""What an overload does with complex operands that has another form for real ones."""

IMPORTS: tuple[Import, ...] = (
    row(_view_as_complex, "aten.view_as_complex.default"),
    row(_view_as_real, "aten.view_as_real.default"),
    row(_complex, "aten.complex.default"),
    row(_polar, "aten.polar.default"),
    row(_part(0), "aten.real.default"),
    row(_part(1), "aten.imag.default"),
    row(_conjugate, "aten._conj.default", "aten.conj.default", "aten.conj_physical.default",
        "aten._conj_physical.default"),
)  # fmt: skip


def complex_aware(
    family: tuple[Import, ...], forms: Mapping[str, Importer] = FORMS
) -> tuple[Import, ...]:
    """Returns the rows of a family, which then take their complex form for complex operands."""
    return tuple(
        Import(_dispatched(item.importer, forms.get(target), target), (target,))
        for item in family
        for target in item.targets
    )


def _dispatched(importer: Importer, form: Importer | None, target: str) -> Importer:
    if form is None and target in _MOVED:
        form = _lifted(importer)

    def run(c: CallImport) -> Imported:
        for arg in c.args.values():
            if is_complex(arg) or (isinstance(arg, tuple) and any(map(is_complex, arg))):
                if form is None:
                    raise UnsupportedCallError("it has no form for complex numbers")
                return form(c)
        if c.results and c.results[0].dtype in _REAL:
            if form is None or target in _MOVED:
                raise UnsupportedCallError("it makes complex numbers of real ones")
            return form(c)
        return importer(c)

    return run
