"""Writing factors in place of a matrix: plain products, reshapes and transposes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, conv, linalg, reshaping
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.calibration.products import ConstantProduct
from regraft.passes.factorize.blocks import Blocks
from regraft.passes.factorize.mpo import Train
from regraft.passes.recovery.fading import let_fade

Array = np.ndarray[Any, Any]
Factors = Blocks | Train


def refusal(product: ConstantProduct, *, is_plain: bool) -> str | None:
    """Returns why a product cannot be written as factors, None where it can.

    Args:
        product: The product.
        is_plain: Whether the factors are one pair of matrices: the others need the last axis.
    """
    node, rank = product.node, product.x.rank
    if node.op is linalg.gemm:
        attrs = node.attrs
        if product.x_idx != 0 or attrs["trans_a"] or attrs["alpha"] != 1 or attrs["beta"] != 1:
            return "`gemm` scales, or turns what varies"
        return None
    if node.op is linalg.matmul:
        if len(product.weight.shape or ()) != 2:
            return "`matmul` by a stack of matrices"
        if product.x_idx != 0 and not is_plain:
            return "`matmul` sums over the axis before the last"
        return None if rank is not None else "`matmul` of a value of unknown rank"
    if node.op is conv.conv:
        if node.attrs["groups"] != 1:
            return "`conv` in groups"
        return None if is_plain else "`conv` takes low rank alone"
    return f"`{node.op.name}` has no factored form"


def write_factors(
    module: Module,
    products: Sequence[ConstantProduct],
    name: str,
    factors: Factors,
    blend: float = 0.0,
) -> None:
    """Replaces all products by a constant by products by its factors, which become parameters.

    Args:
        module: The module.
        products: In the order of the graph; `refusal` found nothing.
        name: Of the constant.
        factors: Of the matrix `f[K, N]` that they see.
        blend: Part of the result that comes from the whole matrix, 0 for none.
    """
    values = add_factors(module, products[0], name, factors)
    share = _share(module, products[0], name, blend) if blend else None
    for product in products:
        node = product.node
        b = Builder(module.graph, node, node.loc)
        result = product_by_factors(b, product, factors, values)
        if share is not None:
            operands = product.x, product.weight
            whole = b.op(
                node.op, *operands[:: 1 - 2 * product.x_idx], *_no_bias(node), **node.attrs
            )
            beyond = b.op(arithmetic.sub, result, whole)
            result = b.op(arithmetic.add, whole, b.op(arithmetic.mul, beyond, share))
        bias = node.inputs[2] if node.op is linalg.gemm else None
        if bias is not None:
            result = b.op(arithmetic.add, result, bias)
        module.graph.replace(node, [result])


def add_factors(
    module: Module, product: ConstantProduct, name: str, factors: Factors
) -> list[Value]:
    """Adds factors as parameters before a product, laid out as its operator takes them."""
    b = Builder(module.graph, product.node, product.node.loc)
    dtype = product.weight.dtype
    assert dtype is not None, "a constant has a type"

    def parameter(which: str, array: Array) -> Value:
        content = np.ascontiguousarray(array.astype(dtype.numpy))
        return b.weight(f"{name}.{which}", ArrayWeight(content), Role.PARAM)

    return [parameter(which, array) for which, array in _contents(product, factors)]


def _no_bias(node: Node) -> tuple[None, ...]:
    return (None,) * (len(node.inputs) - 2)


def _share(module: Module, product: ConstantProduct, name: str, blend: float) -> Value:
    """Adds the share of the factors in `whole + share * (factors - whole)`, as a weight.

    It stands in one place, so that training can draw it to one; at zero the result is the whole.

    Source: Wei et al., Building on Efficient Foundations, 2024, eq. 5 (self-guided training).
    """
    dtype = product.weight.dtype
    assert dtype is not None, "a constant has a type"
    b = Builder(module.graph, product.node, product.node.loc)
    content = ArrayWeight(np.asarray(1 - blend, dtype.numpy))
    let_fade(module, [f"{name}.share"])
    return b.weight(f"{name}.share", content, Role.PARAM)


def _contents(product: ConstantProduct, factors: Factors) -> list[tuple[str, Array]]:
    """Returns the factors as the operators take them, by a name of their place."""
    if isinstance(factors, Train):
        # a core as the matrix that it multiplies by: [(i_k χ_k), (χ_(k-1) o_k)]
        turned = [core.transpose(1, 3, 0, 2) for core in factors.cores]
        return [
            (f"core{k}", core.reshape(core.shape[0] * core.shape[1], -1))
            for k, core in enumerate(turned)
        ]
    left, right = factors.left, factors.right
    if len(left) == len(right) == 1:
        left, right = left[0], right[0]
    if product.node.op is conv.conv:
        shape = [size for size in product.weight.shape or () if isinstance(size, int)]
        taps = left.T.reshape(factors.rank, prod(shape[2:]), shape[1]).swapaxes(1, 2)
        left = taps.reshape(-1, *shape[1:])
        right = right.T.reshape(shape[0], factors.rank, *(1,) * len(shape[2:]))
    elif product.x_idx == 1:
        left, right = left.T, right.T
    return [("left", left), ("right", right)]


def product_by_factors(
    b: Builder, product: ConstantProduct, factors: Factors, values: Sequence[Value]
) -> Value:
    """Returns what a product would give with factors in place of its constant, without a bias.

    A convolution keeps its bias.
    """
    node, x = product.node, product.x
    if isinstance(factors, Train):
        return _train(b, x, factors, values)
    left, right = values
    if node.op is conv.conv:
        return _conv(b, node, x, left, right)
    if product.x_idx == 1:  # (x W)ᵀ = Wᵀ xᵀ
        return b.op(linalg.matmul, right, b.op(linalg.matmul, left, x))
    if left.rank == 2:
        return b.op(linalg.matmul, b.op(linalg.matmul, x, left), right)
    return _blocks(b, x, factors, left, right)


def _conv(b: Builder, node: Node, x: Value, left: Value, right: Value) -> Value:
    """A convolution to few channels, and one of window 1 to all of them."""
    inner = b.op(conv.conv, x, left, None, **node.attrs)
    ones = (1,) * ((right.rank or 2) - 2)
    return b.op(
        conv.conv, inner, right, node.inputs[2],
        strides=ones, dilations=ones, pads=(0,) * (2 * len(ones)),
    )  # fmt: skip


def _lead(x: Value) -> tuple[DimLike, ...]:
    if x.shape is None:
        raise AssertionError("the rank of what is multiplied is known")
    return x.shape[:-1]


def _reshaped(b: Builder, x: Value, *sizes: DimLike) -> Value:
    return b.op(reshaping.reshape, x, shape=sizes)


def _blocks(b: Builder, x: Value, factors: Blocks, left: Value, right: Value) -> Value:
    """`x f[*, S, K]` in blocks of inputs, shuffled, in blocks of outputs."""
    (num_in, p, _), (num_out, _, q), r = factors.left.shape, factors.right.shape, factors.rank
    lead = _lead(x)
    outer, rows = lead[:-1], lead[-1]
    n = len(outer)
    swap = (*range(n), n + 1, n)  # [*, S, b] <-> [*, b, S]
    parts = b.op(
        reshaping.transpose, _reshaped(b, x, *lead, num_in, p), perm=(*swap, n + 2)
    )  # [*, b, S, p]
    inner = b.op(linalg.matmul, parts, left)  # [*, b, S, m r]
    split = _reshaped(b, inner, *outer, num_in, rows, num_out, r)
    # the shuffle: [*, b, S, m, r] -> [*, m, S, b, r]
    shuffled = b.op(reshaping.transpose, split, perm=(*range(n), n + 2, n + 1, n, n + 3))
    joined = _reshaped(b, shuffled, *outer, num_out, rows, num_in * r)
    result = b.op(linalg.matmul, joined, right)  # [*, m, S, q]
    back = b.op(reshaping.transpose, result, perm=(*swap, n + 2))
    return _reshaped(b, back, *lead, num_out * q)


def _train(b: Builder, x: Value, train: Train, values: Sequence[Value]) -> Value:
    """Contracts the cores from the last to the first.

    Before core k the state is `[*, (i_1 … i_k-1), (o_k+1 … o_n), (i_k χ_k)]`.
    """
    lead = _lead(x)
    n = len(lead)
    inputs = [core.shape[1] for core in train.cores]
    state = _reshaped(b, x, *lead, prod(inputs[:-1]), 1, inputs[-1])
    done = 1
    for k in range(len(inputs) - 1, -1, -1):
        chi, _, o, _ = train.cores[k].shape
        state = b.op(linalg.matmul, state, values[k])  # [*, (i_1 … i_k-1), rest, (χ_k-1 o_k)]
        if k == 0:
            break
        before = prod(inputs[: k - 1])
        split = _reshaped(b, state, *lead, before, inputs[k - 1], done, chi, o)
        # [*, before, i, rest, χ, o] -> [*, before, o, rest, i, χ]
        perm = (*range(n + 1), n + 4, n + 2, n + 1, n + 3)
        turned = b.op(reshaping.transpose, split, perm=perm)
        done *= o
        state = _reshaped(b, turned, *lead, before, done, inputs[k - 1] * chi)
    # [*, 1, (o_2 … o_n), o_1]: the first factor of the outputs is innermost
    first = train.cores[0].shape[2]
    split = _reshaped(b, state, *lead, done, first)
    turned = b.op(reshaping.transpose, split, perm=(*range(n), n + 1, n))
    return _reshaped(b, turned, *lead, first * done)
