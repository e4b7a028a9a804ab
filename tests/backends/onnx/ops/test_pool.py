"""Max pools behind a Pad of another value than -inf, which ONNX Runtime would take in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.builder import Builder
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import pool, repeating
from regraft.ir.types import DType, TensorType


def padded(value: float | None, **attrs: Any) -> Module:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 1, 7, 6)))
    b = Builder(graph)
    given = None if value is None else b.constant(np.float32(value))
    wide = b.op(repeating.pad, x, None, given, pads=(0, 0, 1, 1, 0, 0, 1, 1))
    window = {"kernel": (3, 3), "strides": (2, 2), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    graph.add_output("y", b.op(pool.max_pool, wide, **(window | attrs)))
    return Module(graph)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("value", [None, 0.0, -1.5, -np.inf])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 0)])
def test_the_runtime_pools_what_a_pad_adds(
    value: float | None, ceil: bool, pads: tuple[int, ...]
) -> None:
    module = padded(value, ceil_mode=ceil, pads=pads)
    x = -2 - np.random.default_rng(0).uniform(size=(1, 1, 7, 6)).astype(np.float32)
    proto = to_proto(module)
    assert operators(proto) == ["Pad", "MaxPool"]
    made = OrtRunner(proto)({"x": x})["y"]
    np.testing.assert_array_equal(made, evaluate(module, {"x": x})["y"])


def test_a_pad_of_minus_infinity_stays_one_that_the_runtime_takes_in() -> None:
    def names(value: float) -> set[str]:
        return {attr.name for attr in to_proto(padded(value)).graph.node[-1].attribute}

    assert "pads" in names(-np.inf)
    assert "pads" not in names(0.0)
