"""Takes apart what conv networks compute per channel, so that generated kernels take it in.

PyTorch adds the bias of a convolution in a pass of its own over the result. Apart, it is the
first sum of the chain that follows: activation, residual sum, norm of groups. Norms with the
statistics of training become a factor and an offset per channel; those of instances and means of
planes become reductions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regraft.backends.triton.chain_forms import FLOATS
from regraft.backends.triton.region_nodes import REDUCTIONS, ROW_OPS, takes
from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.arithmetic import add, div, mul, sub
from regraft.ir.ops.conv import conv
from regraft.ir.ops.functions import sqrt
from regraft.ir.ops.norm import batch_norm, group_norm, instance_norm
from regraft.ir.ops.pool import global_average_pool
from regraft.ir.ops.reduce import reduce_mean
from regraft.ir.ops.reshaping import reshape
from regraft.ir.opspec import OpSpec

_MIN_RANK = 3


def with_channel_chains(module: Module) -> Module:
    """Returns the module, or a copy where such operators are element-wise ones and reductions."""
    if not any(_fits(node) for node in module.graph):
        return module
    module = module.clone()
    for node in list(module.graph):
        if _fits(node):
            b = Builder(module.graph, node, node.loc)
            module.graph.replace(node, [_APART[node.op](b, node)])
    return module


def _fits(node: Node) -> bool:
    x = node.inputs[0] if node.op in _APART else None
    if x is None or x.shape is None or len(x.shape) < _MIN_RANK or x.dtype not in FLOATS:
        return False
    operands = [value for value in node.inputs if value is not None]
    if any(value.dtype is not x.dtype or value.shape is None for value in operands):
        return False
    if node.op is conv:
        return len(operands) == len(node.op.operands) and any(map(_continues, node.output.users))
    if any(value.num_uses for value in node.outputs[1:]):
        return False
    if node.op is global_average_pool:
        return any(map(_continues, (*x.users, *([] if x.producer is None else [x.producer]))))
    return True


def _continues(node: Node) -> bool:
    """Whether an element-wise kernel, or a norm of groups, goes on with what a node reads."""
    is_other = node.op in REDUCTIONS | ROW_OPS and node.op is not group_norm
    return not is_other and takes(node)


def _per_channel(b: Builder, value: Value | None, rank: int) -> Value:
    if value is None or value.shape is None:
        raise AssertionError("a missing operand")
    return b.op(reshape, value, shape=(1, *value.shape, *(1,) * (rank - 2)))


def _epsilon(b: Builder, node: Node) -> Value:
    dtype = node.outputs[0].dtype
    return b.constant(np.float32(node.attrs["epsilon"]), dtype)


def _conv(b: Builder, node: Node) -> Value:
    x, weight, bias = node.inputs
    product = b.op(conv, x, weight, None, **node.attrs)
    return b.op(add, product, _per_channel(b, bias, len(product.shape or ())))


def _batch_norm(b: Builder, node: Node) -> Value:
    rank = len(node.outputs[0].shape or ())
    scale, bias, mean, var = (_per_channel(b, value, rank) for value in node.inputs[1:5])
    factor = b.op(div, scale, b.op(sqrt, b.op(add, var, _epsilon(b, node))))
    offset = b.op(sub, bias, b.op(mul, mean, factor))
    return b.op(add, b.op(mul, node.inputs[0], factor), offset)


def _instance_norm(b: Builder, node: Node) -> Value:
    x = node.inputs[0]
    rank = len(node.outputs[0].shape or ())
    scale, bias = (_per_channel(b, value, rank) for value in node.inputs[1:3])
    centered = b.op(sub, x, _mean(b, x, rank))
    variance = _mean(b, b.op(mul, centered, centered), rank)
    deviation = b.op(sqrt, b.op(add, variance, _epsilon(b, node)))
    return b.op(add, b.op(mul, b.op(div, centered, deviation), scale), bias)


def _mean(b: Builder, x: Value | None, rank: int) -> Value:
    return b.op(reduce_mean, x, axes=tuple(range(2, rank)), keepdims=True)


def _pool(b: Builder, node: Node) -> Value:
    x = node.inputs[0]
    return _mean(b, x, len(node.output.shape or ()))


_APART: dict[OpSpec, Callable[[Builder, Node], Value]] = {
    conv: _conv,
    batch_norm: _batch_norm,
    instance_norm: _instance_norm,
    global_average_pool: _pool,
}
