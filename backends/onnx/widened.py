"""A module of bf16 as ONNX Runtime's CPU kernels take it: the same in f32."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.steps import Cast
from regraft.ir.types import DType, TensorType


def widen(module: Module) -> None:
    """Makes every bf16 of a module f32, in place; nothing is rounded to bf16 any more.

    Weights are cast when they are read. Cost: O(nodes).
    """
    for name in list(module.weights):
        held = module.weights[name]
        if held.dtype is DType.BF16:
            module.weights.set(name, DerivedWeight(Cast(derive(name, held), DType.F32)))
    _widen_graph(module.graph)


def has_bf16(module: Module) -> bool:
    """Whether anything in the main graph is bf16."""
    values = [*module.graph.inputs, *(v for node in module.graph for v in node.outputs)]
    return any(value.dtype is DType.BF16 for value in values)


def _widen_graph(graph: Graph) -> None:
    for value in graph.inputs:
        _widen_value(value)
    for node in graph:
        for body in node.bodies:
            _widen_graph(body)
        node.attrs = {name: _attribute(held) for name, held in node.attrs.items()}
        for value in node.outputs:
            _widen_value(value)


def _widen_value(value: Value) -> None:
    if isinstance(value.type, TensorType) and value.type.dtype is DType.BF16:
        value.type = value.type.with_dtype(DType.F32)


def _attribute(held: Any) -> Any:
    if held is DType.BF16:
        return DType.F32
    if isinstance(held, np.ndarray) and held.dtype == DType.BF16.numpy:
        return held.astype(np.float32)
    return held
