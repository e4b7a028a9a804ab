"""Importers of linear algebra: products of matrices, vectors and stacks, einsum."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.arithmetic import scaled
from regraft.frontends.torch.ops.shape import shape_of
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical, reduce
from regraft.ir.ops.cumulative import cumsum
from regraft.ir.ops.einsum import einsum
from regraft.ir.ops.fill import range_
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.linalg import det, matmul
from regraft.ir.ops.reshaping import reshape, transpose, unsqueeze
from regraft.ir.types import DType


def swapped(c: CallImport, value: Value) -> Value:
    """Returns a stack of transposed matrices."""
    rank = value.rank or 0
    return c.b.op(transpose, value, perm=(*range(rank - 2), rank - 1, rank - 2))


def _linear(c: CallImport) -> Value:
    x, weight, bias = c.value("input"), c.value("weight"), c.optional("bias")
    if weight.rank == 2:
        weight = c.b.op(transpose, weight, perm=(1, 0))
    out = c.b.op(matmul, x, weight)
    return out if bias is None else c.b.op(arithmetic.add, out, bias)


def _product(first: str, second: str) -> Importer:
    def run(c: CallImport) -> Value:
        return c.b.op(matmul, c.operand(first), c.operand(second))

    return run


def _with_input(first: str, second: str) -> Importer:
    """Returns an importer of `beta * self + alpha * first @ second`."""

    def run(c: CallImport) -> Value:
        out = c.b.op(matmul, c.operand(first), c.operand(second))
        return _plus_input(c, out)

    return run


def _plus_input(c: CallImport, out: Value) -> Value:
    alpha, beta = c.attr("alpha"), c.attr("beta")
    out = scaled(c, out, alpha)
    if beta == 0:  # what `self` holds, NaN too, does not count
        return out
    return c.b.op(arithmetic.add, out, scaled(c, c.operand("self"), beta))


def _addbmm(c: CallImport) -> Value:
    out = c.b.op(matmul, c.operand("batch1"), c.operand("batch2"))
    return _plus_input(c, c.b.op(reduce.reduce_sum, out, axes=(0,), keepdims=False))


def _outer(first: str, second: str) -> Importer:
    def run(c: CallImport) -> Value:
        return _outer_product(c, first, second)

    return run


def _outer_product(c: CallImport, first: str, second: str) -> Value:
    column = c.b.op(unsqueeze, c.operand(first), axes=(1,))
    spec = logical.logical_and if c.dtype is DType.BOOL else arithmetic.mul
    return c.b.op(spec, column, c.operand(second))


def _addr(c: CallImport) -> Value:
    return _plus_input(c, _outer_product(c, "vec1", "vec2"))


def _einsum(c: CallImport) -> Value:
    operands = [c.cast(value, c.dtype) for value in c.values("tensors")]
    equation = c.attr("equation").replace(" ", "")
    if "..." in equation:
        operands = _equal_ellipses(c, operands, equation.partition("->")[0].split(","))
    return c.b.op(einsum, *operands, equation=equation)


def _equal_ellipses(c: CallImport, operands: Sequence[Value], terms: Sequence[str]) -> list[Value]:
    """Returns operands whose ellipses all stand for as many axes, which runtimes ask for."""
    own = [
        len(shape_of(x)) - len(term) + 3 if "..." in term else None
        for x, term in zip(operands, terms, strict=True)
    ]
    most = max(count for count in own if count is not None)
    results = []
    for x, term, count in zip(operands, terms, own, strict=True):
        if count is not None and count < most:
            at = term.index("...")
            x = c.b.op(unsqueeze, x, axes=tuple(range(at, at + most - count)))
        results.append(x)
    return results


def _inner(c: CallImport) -> Value:
    a, b = c.operand("self"), c.operand("other")
    if not a.rank or not b.rank:
        return c.b.op(arithmetic.mul, a, b)
    rank_a, rank_b = a.rank, b.rank
    letters = "abcdefghijklmnopqrstuvwxy"
    left, right = letters[: rank_a - 1], letters[rank_a - 1 : rank_a + rank_b - 2]
    return c.b.op(einsum, a, b, equation=f"{left}z,{right}z->{left}{right}")


def _tensordot(c: CallImport) -> Value:
    a, b = c.operand("self"), c.operand("other")
    left = [axis % (a.rank or 1) for axis in c.attr("dims_self")]
    right = [axis % (b.rank or 1) for axis in c.attr("dims_other")]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names_a = [next(letters) for _ in range(a.rank or 0)]
    names_b = [next(letters) for _ in range(b.rank or 0)]
    for i, j in zip(left, right, strict=True):
        names_b[j] = names_a[i]
    kept = [name for i, name in enumerate(names_a) if i not in left]
    kept += [name for j, name in enumerate(names_b) if j not in right]
    equation = f"{''.join(names_a)},{''.join(names_b)}->{''.join(kept)}"
    return c.b.op(einsum, a, b, equation=equation)


def _bilinear(c: CallImport) -> Value:
    first, second, weight = c.value("input1"), c.value("input2"), c.value("weight")
    out = c.b.op(einsum, first, weight, second, equation="...i,oij,...j->...o")
    bias = c.optional("bias")
    return out if bias is None else c.b.op(arithmetic.add, out, bias)


def _cosine_similarity(c: CallImport) -> Value:
    a, b = c.operand("x1"), c.operand("x2")
    rank = max(a.rank or 0, b.rank or 0)
    dim: int = c.attr("dim")
    axis = dim - rank if dim >= 0 else dim
    eps = c.number(c.attr("eps"), c.dtype)

    def unit(x: Value) -> Value:
        own = (axis + (x.rank or 0),)
        size = c.b.op(reduce.reduce_l2, x, axes=own, keepdims=True)
        return c.b.op(arithmetic.div, x, c.b.op(arithmetic.max_, size, eps))

    product = c.b.op(arithmetic.mul, unit(a), unit(b))
    return c.b.op(reduce.reduce_sum, product, axes=(axis + rank,), keepdims=False)


def _cross(c: CallImport) -> Value:
    a, b = c.operand("self"), c.operand("other")
    if c.attr("dim") is None:
        raise UnsupportedCallError("an axis chosen by its size")
    axis = c.attr("dim") - max(a.rank or 0, b.rank or 0) if c.attr("dim") >= 0 else c.attr("dim")

    def turned(x: Value, by: int) -> Value:
        order = c.b.constant([(i + by) % 3 for i in range(3)], DType.I64)
        return c.b.op(gather, x, order, axis=axis + (x.rank or 0))

    first = c.b.op(arithmetic.mul, turned(a, 1), turned(b, 2))
    second = c.b.op(arithmetic.mul, turned(a, 2), turned(b, 1))
    return c.b.op(arithmetic.sub, first, second)


def _grouped_product(c: CallImport) -> Value:
    """Rows sorted by expert times the matrix of their expert, as a sum over all experts.

    Args of the call: input `[S, K]`, weight `[E, K, N]`, offs `i32[E]` (end of each expert's rows).
    """
    names = ("input", "weight", "offs") if "weight" in c.args else ("self", "mat2", "offs")
    x, weight, ends = (c.value(name) for name in names)
    if x.rank != 2 or weight.rank != 3 or c.args.get("bias") is not None:
        raise UnsupportedCallError("groups along another axis than the rows")
    rows: DimLike = (x.shape or (0,))[0]
    ends = c.b.op(reshape, c.cast(ends, DType.I64), shape=((ends.shape or (0,))[0], 1))
    position = c.b.op(range_, start=0, limit=rows, delta=1, dtype=DType.I64)
    # a row belongs to the first expert whose end lies behind it
    before = c.cast(c.b.op(logical.less, position, ends), DType.I32)  # [E, S], rising in E
    every = c.b.op(matmul, c.b.op(unsqueeze, x, axes=(0,)), weight)  # [E, S, N]
    first = c.b.op(logical.equal, c.b.op(cumsum, before, axis=0), c.number(1, DType.I32))
    chosen = c.b.op(logical.where, c.b.op(unsqueeze, first, axes=(2,)), every,
                    c.number(0, c.dtype))  # fmt: skip
    return c.b.op(reduce.reduce_sum, chosen, axes=(0,), keepdims=False)


def _multi_dot(c: CallImport) -> Value:
    out, *rest = c.values("tensors" if "tensors" in c.args else "matrices")
    for value in rest:
        out = c.b.op(matmul, out, value)
    return out


IMPORTS: tuple[Import, ...] = (
    row(_linear, "aten.linear.default"),
    row(_product("self", "mat2"), "aten.mm.default", "aten.bmm.default"),
    row(
        _product("self", "other"), "aten.matmul.default", "aten.linalg_matmul.default"
    ),
    row(_product("self", "vec"), "aten.mv.default"),
    row(_product("self", "tensor"), "aten.dot.default"),
    row(_with_input("mat1", "mat2"), "aten.addmm.default"),
    row(_with_input("mat", "vec"), "aten.addmv.default"),
    row(_with_input("batch1", "batch2"), "aten.baddbmm.default"),
    row(_addbmm, "aten.addbmm.default"),
    row(_outer("self", "vec2"), "aten.outer.default", "aten.ger.default"),
    row(_addr, "aten.addr.default"),
    row(_einsum, "aten.einsum.default"),
    row(_inner, "aten.inner.default"),
    row(_tensordot, "aten.tensordot.default"),
    row(_bilinear, "aten.bilinear.default"),
    row(_cosine_similarity, "aten.cosine_similarity.default"),
    row(_cross, "aten.linalg_cross.default", "aten.cross.default"),
    row(lambda c: c.b.op(det, c.value("A")), "aten.linalg_det.default"),
    row(lambda c: c.b.op(det, c.value("self")), "aten.det.default"),
    row(_multi_dot, "aten.linalg_multi_dot.default", "aten.chain_matmul.default"),
    row(_grouped_product, "transformers.grouped_mm_fallback.default", "aten._grouped_mm.default"),
)  # fmt: skip
