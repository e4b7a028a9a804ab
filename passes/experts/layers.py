"""Layers of experts as their operator `moe` has them: read, rewritten, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, gathering, linalg, moe
from regraft.ir.ops.moe_hidden import eval_hidden, eval_result
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
_NAMES = tuple(each.name for each in moe.moe.operands)


@dataclass(frozen=True, slots=True, eq=False)
class MoeLayer:
    """One layer of experts with constant weights.

    Args:
        graph: Where it is.
        node: The operator.
        weights: By operand: up and gate f[E, F, D], down f[E, O, F], biases f[E, *].
    """

    graph: Graph
    node: Node
    weights: Mapping[str, Array]

    @property
    def name(self) -> str:
        """Name of the first weight."""
        return str(_operand(self.node, 2).name)

    @property
    def x(self) -> Value:
        """The tokens."""
        return _operand(self.node, 0)

    @property
    def scores(self) -> Value:
        """What the router says."""
        return _operand(self.node, 1)

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return int(self.weights["up"].shape[0])

    @property
    def top_k(self) -> int:
        """How many of them compute a token."""
        return int(self.node.attrs["top_k"])


def _operand(node: Node, idx: int) -> Value:
    value = node.inputs[idx]
    if value is None:
        raise AssertionError("moe has tokens, scores and weights")
    return value


def moe_layers_of(module: Module) -> tuple[list[MoeLayer], list[Skip]]:
    """Returns the layers of a module and its bodies; those of unknown weights as skips."""
    found, skipped = [], []
    for graph in graphs_of(module.graph):
        for node in graph:
            if node.op is not moe.moe:
                continue
            if node.attrs["scoring"] == "given":
                skipped.append(Skip(str(node.output.name), "its weights are not made of scores"))
                continue
            weights = {
                name: constant_of(value, _ANY_SIZE)
                for name, value in zip(_NAMES[2:], node.inputs[2:], strict=False)
                if value is not None
            }
            known = {name: array for name, array in weights.items() if array is not None}
            if len(known) < len(weights):
                skipped.append(Skip(str(node.output.name), "the experts are no constants"))
            else:
                found.append(MoeLayer(graph, node, known))
    return found, skipped


def rewrite_layer(
    layer: MoeLayer, weights: Mapping[str, Array], top_k: int,
    scores: Callable[[Builder, Value], Value],
) -> None:  # fmt: skip
    """Replaces the operator by one of other experts.

    Args:
        layer: The layer.
        weights: By operand, as in the layer.
        top_k: How many are chosen.
        scores: Writes their scores, from those of the router.
    """
    node = layer.node
    b = Builder(layer.graph, node, node.loc)
    operands: list[Value | None] = [layer.x, scores(b, layer.scores)]
    for name, old in zip(_NAMES[2:], node.inputs[2:], strict=False):
        operands.append(None if old is None else _parameter(b, old, weights[name]))
    result = b.op(moe.moe, *operands, **{**node.attrs, "top_k": top_k, "widths": ()})
    layer.graph.replace(node, [result])


def _parameter(b: Builder, old: Value, array: Array) -> Value:
    """Adds a parameter beside the one that it is made of, which is dropped with its last use."""
    return b.weight(str(old.name), ArrayWeight(np.ascontiguousarray(array)), Role.PARAM)


def scores_of(b: Builder, scores: Value, kept: Sequence[int]) -> Value:
    """Returns the scores of some experts: from a router of those alone where it is linear."""
    found = _narrowed(b, scores, np.array(kept, np.int64))
    if found is not None:
        return found
    return b.op(gathering.gather, scores, b.constant(np.array(kept, np.int64)), axis=-1)


def _narrowed(b: Builder, value: Value, kept: Array) -> Value | None:
    node = value.producer
    if node is None or node.op not in (linalg.matmul, arithmetic.add, linalg.gemm):
        return None
    x, other = node.inputs[0], node.inputs[1]
    if x is None or other is None or not is_constant(other):
        return None
    constant = constant_of(other, _ANY_SIZE)
    assert constant is not None, "a constant has content"
    if node.op is arithmetic.add:
        inner = _narrowed(b, x, kept) if constant.ndim == 1 and constant.size > 1 else None
        if inner is None:
            return None
        return b.op(arithmetic.add, inner, _parameter(b, other, constant[kept]))
    turned = node.op is linalg.gemm and node.attrs["trans_b"]
    if constant.ndim != 2:
        return None
    rows = _parameter(b, other, np.take(constant, kept, axis=0 if turned else 1))
    if node.op is linalg.matmul:
        return b.op(linalg.matmul, x, rows)
    bias = node.inputs[2]
    if bias is not None:
        content = constant_of(bias, _ANY_SIZE)
        if content is None or content.ndim != 1 or content.size == 1:
            return None
        bias = _parameter(b, bias, content[kept])
    return b.op(linalg.gemm, x, rows, bias, **node.attrs)


def outputs_of(layer: MoeLayer, expert: int, tokens: Array) -> Array:
    """Returns what one expert makes of tokens, f[T, D] -> f[T, O]."""
    weights = layer.weights

    def project(rows: Array, name: str) -> Array:
        result: Array = rows @ weights[name][expert].astype(rows.dtype).T
        bias = weights.get(f"{name}_bias")
        return result if bias is None else result + bias[expert].astype(rows.dtype)

    attrs = layer.node.attrs
    gates = project(tokens, "gate") if "gate" in weights else None
    hidden = eval_hidden(attrs, project(tokens, "up"), gates)
    return eval_result(attrs, project(hidden, "down"))


def loads_of(layer: MoeLayer, tokens: Array, scores: Array) -> tuple[Array, Array]:
    """Returns how often each expert is chosen, and what it adds.

    Args:
        layer: The layer.
        tokens: f[*, D].
        scores: f[*, E].

    Returns:
        i64[E], tokens that go through the expert, and f64[E], the sum over them of weight times the
        norm of the expert's result.
    """
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float32)
    flat = scores.reshape(-1, scores.shape[-1]).astype(np.float32)
    bias, gain = (layer.weights.get(name) for name in ("score_bias", "weight_gain"))
    taken, weights = moe.route(layer.node.attrs, flat, bias, gain)
    counts, added = np.zeros(layer.num_experts, np.int64), np.zeros(layer.num_experts)
    for expert in range(layer.num_experts):
        token = np.flatnonzero(taken[:, expert])
        counts[expert] = len(token)
        if len(token):
            norms = np.linalg.norm(outputs_of(layer, expert, rows[token]), axis=1)
            added[expert] = float((weights[token, expert] * norms).sum(dtype=np.float64))
    return counts, added
