"""A language model of one attention, with random weights."""

from __future__ import annotations

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import attention, gathering, linalg, reshaping
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role

HEADS, SIZE, VOCABULARY = 2, 8, 11


def language_model() -> Module:
    """Returns one layer of attention between a table of tokens and logits."""
    rng = np.random.default_rng(2)
    module = Module(Graph())
    graph, b = module.graph, Builder(module.graph)
    batch, length = (Dim.of(graph.scope.symbol(name)) for name in ("batch", "seq"))
    ids = graph.add_input("input_ids", TensorType(DType.I64, (batch, length)))
    table = b.constant(rng.standard_normal((VOCABULARY, HEADS * SIZE)).astype(np.float32))
    x = b.op(gathering.gather, table, ids)
    parts = []
    for name in "qkv":
        matrix = (rng.standard_normal((HEADS * SIZE, HEADS * SIZE)) / 4).astype(np.float32)
        weight = b.weight(name, ArrayWeight(matrix), Role.PARAM)
        made = b.op(linalg.matmul, x, weight)
        split = b.op(reshaping.reshape, made, shape=(batch, length, HEADS, SIZE))
        parts.append(b.op(reshaping.transpose, split, perm=(0, 2, 1, 3)))
    y = b.op(attention.attention, *parts, scale=SIZE**-0.5, causal_offset=0)
    y = b.op(reshaping.transpose, y, perm=(0, 2, 1, 3))
    y = b.op(reshaping.reshape, y, shape=(batch, length, HEADS * SIZE))
    head = b.constant(rng.standard_normal((HEADS * SIZE, VOCABULARY)).astype(np.float32))
    graph.add_output("logits", b.op(linalg.matmul, y, head))
    return module
