"""Scheduled window dropout: in some steps of training, hybrids have no window.

The linear branch then sees all keys, and the model has to read from it what the window would say.
Which steps is decided by the data: an entry of every batch, 1 for both branches, 0 for the linear
one alone.

Source: arXiv:2510.05901, 2025 (scheduled sliding-window dropout).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, cast, linear_attention, logical, reshaping
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.types import DType, TensorType
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.recovery.data import Batch, Data

ENTRY = "linearize.window"
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class WindowDropout:
    """Data that says in every batch whether hybrids have their window.

    Args:
        data: The batches.
        first: Part of the batches without a window in the beginning.
        last: The same in the end; between both it changes linearly.
        count: Batches of the whole run.
        seed: Of the draws.
    """

    data: Data
    first: float
    last: float
    count: int
    seed: int = 0

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from number `first` on."""
        for number, batch in enumerate(self.data.batches(first), first):
            progress = min(1.0, number / max(1, self.count - 1))
            rate = self.first + (self.last - self.first) * progress
            is_dropped = np.random.default_rng([self.seed, number]).random() < rate
            yield {**batch, ENTRY: np.asarray(not is_dropped, np.float32)}


@contextmanager
def droppable_windows(module: Module) -> Iterator[None]:
    """Lets the batch entry `ENTRY` switch off the windows of all hybrids, within the context.

    Raises:
        ValueError: When the module has no hybrid.
    """
    graph = module.graph
    nodes = [node for node in graph if node.op is hybrid_attention]
    if not nodes:
        raise ValueError("the module has no hybrid_attention, whose window could be dropped")
    entry = graph.add_input(ENTRY, TensorType(DType.F32, ()))
    switched = [(node, _switched(node, entry)) for node in nodes]
    for node, made in switched:
        _redirect(node.outputs[0], made)
    try:
        yield
    finally:
        for node, made in switched:
            chosen = made.producer
            if chosen is None:
                raise AssertionError("the switch is an operator")
            graph.replace(chosen, [node.outputs[0]])
        drop_dead_code(module)
        graph.remove_input([value.name for value in graph.inputs].index(ENTRY))


def _switched(node: Node, entry: Value) -> Value:
    """Returns the node's result where the entry is positive, else the linear branch's."""
    after = node.next
    if node.graph is None:
        raise AssertionError("a node is in a graph")
    b = Builder(node.graph, after, node.loc)
    _, _, v, fq, fk, _, visible = node.inputs[:7]
    if fk is not None and visible is not None:
        shape = visible.shape or ()
        lined = b.op(reshaping.reshape, visible, shape=(shape[0], 1, shape[1], 1))
        fk = b.op(arithmetic.mul, fk, b.op(cast.cast, lined, to=fk.dtype))
    linear = b.op(
        linear_attention.linear_attention, fq, fk, v, rule="linear", scale=1.0, normalizer="sum",
        epsilon=_EPSILON, kv_groups=node.attrs["kv_groups"],
    )  # fmt: skip
    is_on = b.op(logical.greater, entry, b.constant(0.5, DType.F32))
    return b.op(logical.where, is_on, node.outputs[0], linear)


def _redirect(old: Value, new: Value) -> None:
    """Lets every other user of a value read the switch."""
    for user in list(old.users):
        if user is new.producer:
            continue
        for idx, operand in enumerate(user.inputs):
            if operand is old:
                user.set_operand(idx, new)
