"""Linear layers of other floats, computed in f32, which is what kernels of integers give and take.

What is between layers keeps its type: a cast stands before and after every layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, weight
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, cast, linalg
from regraft.ir.steps import Cast
from regraft.ir.types import DType
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.quantization.sites import Linear, linears

_ANY_SIZE = 1 << 62

OTHER_FLOATS = frozenset({DType.F16, DType.BF16, DType.F64})


def widen_layers(module: Module, is_kept: Callable[[str], bool]) -> int:
    """Makes linear layers of other floats such of f32, in place; returns their number.

    Args:
        module: The module.
        is_kept: Whether a layer of this name stays as it is.
    """
    wide: dict[Value, Value] = {}
    sites = [each for each in linears(module.graph, OTHER_FLOATS) if not is_kept(each.name)]
    for site in sites:
        _widen(module, site, wide)
    if sites:
        drop_dead_code(module)
    return len(sites)


def _widen(module: Module, site: Linear, wide: dict[Value, Value]) -> None:
    first = Builder(module.graph, site.node, site.node.loc)
    last, bias = site.with_bias()
    held = site.node.inputs[0]  # not `.x`: the layer that made it may be rewritten already
    if held is None:
        raise AssertionError("a linear layer has an input")
    if held not in wide:
        wide[held] = first.op(cast.cast, held, to=DType.F32)
    for value in (site.weight, bias):
        if value is not None and value not in wide:
            wide[value] = _constant(module, first, value)
    b = Builder(module.graph, last, site.node.loc)
    x, matrix = wide[held], wide[site.weight]
    if site.node.op is linalg.gemm:
        own = None if site.bias is None else wide[site.bias]
        result = b.op(linalg.gemm, x, matrix, own, **site.node.attrs)
    else:
        result = b.op(linalg.matmul, x, matrix)
    if last is not site.node and bias is not None:
        result = b.op(arithmetic.add, result, wide[bias])
    dtype = last.output.dtype
    module.graph.replace(last, [b.op(cast.cast, result, to=dtype)])


def _constant(module: Module, b: Builder, value: Value) -> Value:
    """Returns a constant in f32."""
    maker = value.producer
    if maker is not None and maker.op is weight:
        name = module.weights.resolve(maker.attrs["name"])
        steps = Cast(derive(name, module.weights[name]), DType.F32)
        return b.weight(f"{name}.wide", DerivedWeight(steps), module.weights.role(name))
    array = constant_of(value, _ANY_SIZE)
    assert array is not None, "an operand of a linear layer is constant"
    return b.constant(array.astype(np.float32), name=value.name)
