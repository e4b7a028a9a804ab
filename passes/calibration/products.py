"""Products by a constant, whatever the operator, seen as stacks of matrices and of rows.

A matrix product, a `gemm`, a convolution and a transposed one all compute `y = x W` with rows `x`
that the node's input gives and a stack of matrices `W f[E, K, N]` that the constant is: one matrix,
or one per group, or per entry of a batch. What rows say of `W` (second moments) is then the same
for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import conv, einsum, linalg, moe, rnn
from regraft.ir.ops.windows import pad_for_windows, windows_of, windows_view
from regraft.ir.opspec import OpSpec
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Layout:
    """How a constant of one shape is a stack of matrices, and an input a stack of rows.

    Args:
        stack: f[shape] -> f[E, K, N], a view or a copy.
        unstack: The inverse.
        rows: The input -> f[E, R, K], or [1, R, K] where all matrices see the same rows.
        key: Equal for layouts that see the same rows in the same input.
        form: Equal for layouts that see the same stack in the same constant.
    """

    stack: Callable[[Array], Array]
    unstack: Callable[[Array], Array]
    rows: Callable[[Array], Array]
    key: Hashable
    form: Hashable


@dataclass(frozen=True, slots=True, eq=False)
class ConstantProduct:
    """`node` multiplies rows of `x` by the constant `weight`.

    Args:
        node: The product.
        x_idx: Which operand varies.
        weight_idx: Which is constant.
        layout: How both are seen.
    """

    node: Node
    x_idx: int
    weight_idx: int
    layout: Layout

    @property
    def x(self) -> Value:
        """The varying operand as it is now: an earlier layer may have been rewritten."""
        return _operand(self.node, self.x_idx)

    @property
    def weight(self) -> Value:
        """The constant."""
        return _operand(self.node, self.weight_idx)

    @property
    def name(self) -> str:
        """Name of the weight, or of the result."""
        made = self.weight.producer
        if made is not None and made.op is weight:
            return str(made.attrs["name"])
        return self.node.output.name or self.node.op.name

    @property
    def num_weights(self) -> int:
        """How many numbers the constant has."""
        return prod(_shape(self.weight))

    def stack(self) -> Array:
        """Returns the matrices, f32[E, K, N]."""
        array = constant_of(self.weight, _ANY_SIZE)
        if array is None:
            raise AssertionError("the weight of a constant product is constant")
        return self.layout.stack(np.asarray(array, np.float32))


def _operand(node: Node, idx: int) -> Value:
    value = node.inputs[idx]
    if value is None:
        raise AssertionError("a product has both operands")
    return value


def constant_products(graph: Graph) -> Iterator[ConstantProduct | Skip]:
    """Iterates over the products of a graph by float constants, in its order.

    Those that are no plain product of rows, and those in bodies, come as a skip with the reason.
    """
    for node in graph:
        for body in node.bodies:
            for inner in body.walk():
                if inner.op in _LAYOUTS and any(is_float_constant(v) for v in inner.inputs):
                    yield Skip(
                        _place(inner), f"`{inner.op.name}` within a body of `{node.op.name}`"
                    )
        refusal = _REFUSED.get(node.op)
        if refusal is not None and any(is_float_constant(v) for v in node.inputs[1:]):
            yield Skip(_place(node), f"`{node.op.name}`: {refusal}")
        find = _LAYOUTS.get(node.op)
        found = None if find is None else find(node)
        if found is not None:
            yield found


def _place(node: Node) -> str:
    return node.outputs[0].name or node.op.name


def is_float_constant(value: Value | None) -> bool:
    """Returns whether a value is a constant of floats with a static shape of rank 2 or more."""
    return (
        value is not None
        and is_constant(value)
        and value.dtype is not None
        and value.dtype.is_float
        and value.shape is not None
        and len(value.shape) >= 2
        and all(isinstance(size, int) and size > 0 for size in value.shape)
    )


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(size for size in value.shape or () if isinstance(size, int))


def _matmul(node: Node) -> ConstantProduct | Skip | None:
    a, b = node.inputs[0], node.inputs[1]
    fixed = is_float_constant(a), is_float_constant(b)
    if fixed[0] == fixed[1] or a is None or b is None:
        return None
    x, other = (b, a) if fixed[0] else (a, b)
    if x.rank is None or x.rank < 2:
        return Skip(_place(node), "`matmul` of a vector, or of a value of unknown rank")
    shape = _shape(other)
    lead = shape[:-2]
    if prod(lead) > 1 and 1 in lead:
        return Skip(_place(node), "`matmul` by a stack that is itself broadcast")

    def flip(array: Array) -> Array:
        return array.swapaxes(-1, -2) if fixed[0] else array

    def stack(array: Array) -> Array:
        flipped = flip(array)
        return flipped.reshape(-1, *flipped.shape[-2:])

    def unstack(stacked: Array) -> Array:
        inner = (*lead, *stacked.shape[1:])
        return np.ascontiguousarray(flip(stacked.reshape(inner)))

    def rows(value: Array) -> Array:
        flipped = flip(value)
        if prod(lead) == 1:
            return flipped.reshape(1, -1, flipped.shape[-1])
        batch = np.broadcast_shapes(flipped.shape[:-2], lead)
        wide = np.broadcast_to(flipped, (*batch, *flipped.shape[-2:]))
        own = wide.reshape(-1, prod(lead), *wide.shape[-2:])
        return own.swapaxes(0, 1).reshape(prod(lead), -1, wide.shape[-1])

    x_idx = 1 if fixed[0] else 0
    key = ("rows", fixed[0], lead if prod(lead) > 1 else ())
    layout = Layout(stack, unstack, rows, key, ("matrix", fixed[0]))
    return ConstantProduct(node, x_idx, 1 - x_idx, layout)


def _gemm(node: Node) -> ConstantProduct | None:
    fixed = is_float_constant(node.inputs[0]), is_float_constant(node.inputs[1])
    if fixed[0] == fixed[1]:
        return None
    attrs = node.attrs
    x_idx = 1 if fixed[0] else 0
    # a enters as [m, k], b as [k, n]; as the constant, a is seen as its transpose
    turn_x = attrs["trans_a"] if x_idx == 0 else not attrs["trans_b"]
    turn_w = attrs["trans_b"] if x_idx == 0 else not attrs["trans_a"]

    def stack(array: Array) -> Array:
        return (array.T if turn_w else array)[None]

    def unstack(stacked: Array) -> Array:
        return np.ascontiguousarray(stacked[0].T if turn_w else stacked[0])

    def rows(value: Array) -> Array:
        return (value.T if turn_x else value)[None]

    layout = Layout(stack, unstack, rows, ("rows", turn_x, ()), ("matrix", turn_w))
    return ConstantProduct(node, x_idx, 1 - x_idx, layout)


def _conv(node: Node) -> ConstantProduct | Skip | None:
    if not is_float_constant(node.inputs[1]) or is_constant(node.inputs[0]):
        return None
    shape, groups = _shape(_operand(node, 1)), node.attrs["groups"]
    kernel = shape[2:]
    windows = windows_of(node.attrs, kernel)
    inputs, outputs = shape[1], shape[0] // groups

    # channels are innermost, so that consecutive positions are channels at one tap
    def stack(array: Array) -> Array:
        taps_last = array.reshape(groups, outputs, inputs, -1)
        return taps_last.transpose(0, 3, 2, 1).reshape(groups, -1, outputs)

    def unstack(stacked: Array) -> Array:
        taps_first = stacked.reshape(groups, prod(kernel), inputs, outputs)
        return np.ascontiguousarray(taps_first.transpose(0, 3, 2, 1)).reshape(shape)

    def rows(value: Array) -> Array:
        padded, _, _, counts = pad_for_windows(value, windows)
        seen = windows_view(padded, kernel, windows.strides, windows.dilations, counts)
        flat = seen.reshape(len(value), groups, inputs, prod(kernel), -1)
        return flat.transpose(1, 0, 4, 3, 2).reshape(groups, -1, prod(kernel) * inputs)

    key = ("windows", groups, kernel, repr(windows))
    layout = Layout(stack, unstack, rows, key, ("windows", groups))
    return ConstantProduct(node, 0, 1, layout)


def _conv_transpose(node: Node) -> ConstantProduct | None:
    if not is_float_constant(node.inputs[1]) or is_constant(node.inputs[0]):
        return None
    shape, groups = _shape(_operand(node, 1)), node.attrs["groups"]
    inputs = shape[0] // groups

    def stack(array: Array) -> Array:
        return array.reshape(groups, inputs, -1)

    def unstack(stacked: Array) -> Array:
        return np.ascontiguousarray(stacked).reshape(shape)

    def rows(value: Array) -> Array:
        flat = value.reshape(len(value), groups, inputs, -1)
        return flat.transpose(1, 0, 3, 2).reshape(groups, -1, inputs)

    layout = Layout(stack, unstack, rows, ("channels", groups), ("channels", groups))
    return ConstantProduct(node, 0, 1, layout)


_LAYOUTS: Mapping[OpSpec, Callable[[Node], ConstantProduct | Skip | None]] = {
    linalg.matmul: _matmul,
    linalg.gemm: _gemm,
    conv.conv: _conv,
    conv.conv_transpose: _conv_transpose,
}

_REFUSED: Mapping[OpSpec, str] = {
    einsum.einsum: "its constant is no plain matrix; canonicalize it first",
    rnn.lstm: "its gates read a state that the samples do not show",
    rnn.gru: "its gates read a state that the samples do not show",
    rnn.rnn: "its gates read a state that the samples do not show",
    moe.moe: "its experts see rows that routing chooses",
}
