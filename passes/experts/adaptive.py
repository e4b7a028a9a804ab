"""Weights of experts above a threshold that a function of the input sets.

With p the probabilities of E experts, those of which p reaches `t(x) = sigmoid(w x + b) / E`
compute a token, weighed by what they have beyond it: `relu(p - t) / sum(relu(p - t))`. The largest
p is at least 1 / E, so that one is always chosen.

Source: Liu and Luo, AdaMoLE, 2024 (arXiv 2405.00361; here for the whole block).
"""

from __future__ import annotations

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import activation, arithmetic, cast, linalg, logical, moe, reduce, softmax
from regraft.passes.analysis.blocks import graphs_of


def adaptive_weights(b: Builder, x: Value, scores: Value, slope: Value, offset: Value) -> Value:
    """Writes the weights of all experts, zero where one is not chosen; returns f[*b, E].

    Args:
        b: Where they are written.
        x: What the router reads, f[*b, D].
        scores: Of the router, f[*b, E].
        slope: Of the threshold, f[D, 1].
        offset: Of the threshold, f[1].
    """
    dtype, count = scores.dtype, scores.shape[-1] if scores.shape else None
    if dtype is None or not isinstance(count, int):
        raise AssertionError("a router has a type and a number of experts")
    level = b.op(arithmetic.add, b.op(linalg.matmul, x, slope), offset)
    most = b.constant(1 / count, dtype)
    threshold = b.op(arithmetic.mul, b.op(activation.sigmoid, level), most)
    beyond = b.op(arithmetic.sub, b.op(softmax.softmax, scores, axis=-1), threshold)
    kept = b.op(activation.relu, beyond)
    total = b.op(reduce.reduce_sum, kept, axes=(-1,), keepdims=True)
    # rounding can leave nothing of equal probabilities and a threshold of 1 / E
    is_none = b.op(logical.equal, total, b.constant(0.0, dtype))
    return b.op(arithmetic.div, kept, b.op(logical.where, is_none, b.constant(1.0, dtype), total))


def margins_of(module: Module) -> tuple[Value, ...]:
    """Returns what the probabilities of each adaptive layer have beyond its threshold, f[*b, E].

    The loss `MarginBalance` takes them. Of a module that was cast they are of the type that the
    difference is computed in.
    """
    found = []
    for graph in graphs_of(module.graph):
        for node in graph:
            if node.op is not moe.moe or node.attrs["scoring"] != "given":
                continue
            value = uncast(node.inputs[1])
            for op in (arithmetic.div, activation.relu):
                maker = None if value is None else value.producer
                value = uncast(maker.inputs[0]) if maker is not None and maker.op is op else None
            maker = None if value is None else value.producer
            if value is not None and maker is not None and maker.op is arithmetic.sub:
                found.append(value)
    return tuple(found)


def uncast(value: Value | None) -> Value | None:
    """Returns what a value was before its conversions to other types, itself without any."""
    while value is not None and value.producer is not None and value.producer.op is cast.cast:
        value = value.producer.inputs[0]
    return value
