"""Carries out a plan of `cast`: element types by inference, conversions only where types meet.

Body inputs and outputs keep their types: conversions stand inside bodies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import literal, weight
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.cast import cast
from regraft.ir.ops.fill import constant_of_shape
from regraft.ir.opspec import Trait
from regraft.ir.steps import Cast
from regraft.ir.types import DType, TensorType
from regraft.passes.precision.kinds import stays_f32
from regraft.passes.precision.plan import Plan


class Lowering:
    """One application of a plan to a module.

    Args:
        module: Changed in place.
        plan: What to lower.
        dtype: f16 or bf16.
    """

    def __init__(self, module: Module, plan: Plan, dtype: DType) -> None:
        self.module = module
        self.plan = plan
        self.dtype = dtype
        self.num_casts = 0
        self._lowered: set[Value] = set()  # values that were f32 before
        self._low: dict[Value, Value] = {}  # f32 value -> its half-precision form
        self._wide: dict[Value, Value] = {}  # lowered value -> its f32 form
        self._half_uses: set[tuple[Node | Graph, int]] = set()  # uses that were half before
        self._copies: dict[str, str] = {}  # weight in f32 -> its copy in half precision

    def run(self) -> None:
        """Lowers weights, then every graph in order."""
        weights = self.module.weights
        for name in sorted(self.plan.weights):
            weights.set(name, DerivedWeight(Cast(derive(name, weights[name]), self.dtype)))
        for node in list(self.module.graph.walk()):
            if node.op is weight and node.attrs["name"] in self.plan.weights:
                node.infer()
                self._lowered.add(node.output)
        self._graph(self.module.graph, is_main=True)

    def _graph(self, graph: Graph, *, is_main: bool) -> None:
        for value in graph.inputs if is_main else ():
            if value in self.plan.interface and isinstance(value.type, TensorType):
                value.type = TensorType(self.dtype, value.type.shape)
                self._lowered.add(value)
        for node in list(graph):
            if Trait.CONSTANT in node.op.traits:
                continue
            for body in node.bodies:
                self._graph(body, is_main=False)
            if node in self.plan.low:
                self._lower(node)
            else:
                self._keep(node)
        for idx, value in enumerate(graph.outputs):
            if is_main and value in self.plan.interface:
                if value not in self._lowered:
                    graph.set_operand(idx, self._to_low(value))
            elif value in self._lowered and (graph, idx) not in self._half_uses:
                graph.set_operand(idx, self._to_wide(value))

    def _lower(self, node: Node) -> None:
        for idx, value in enumerate(node.inputs):
            if value is None or (value.dtype is not DType.F32 and value not in self._lowered):
                continue
            if stays_f32(node, idx):
                node.set_operand(idx, self._to_wide(value) if value in self._lowered else value)
            elif value not in self._lowered:
                node.set_operand(idx, self._to_low(value))
        wide_before = [value.dtype is DType.F32 for value in node.outputs]
        self._retarget(node)
        node.infer()
        for value, was_wide in zip(node.outputs, wide_before, strict=True):
            if was_wide and value.dtype is self.dtype:
                self._lowered.add(value)

    def _retarget(self, node: Node) -> None:
        if node.op is constant_of_shape:
            array: np.ndarray[Any, Any] = node.attrs["value"]
            node.attrs = {**node.attrs, "value": array.astype(self.dtype.numpy)}
        elif node.op is attention and node.attrs["softmax_dtype"] is None:
            node.attrs = {**node.attrs, "softmax_dtype": DType.F32}

    def _keep(self, node: Node) -> None:
        """Gives a node that stays the f32 operands it had; drops a cast that is done already."""
        source = node.inputs[0] if node.op is cast else None
        if source in self._lowered and node.output.dtype is self.dtype and node.graph is not None:
            # its users take half precision already, others of the same value do not
            self._half_uses.update(node.output.uses)
            node.graph.replace(node, [source], "cast")
            return
        for idx, value in enumerate(node.inputs):
            if value in self._lowered and (node, idx) not in self._half_uses:
                node.set_operand(idx, self._to_wide(value))

    # -- conversions ----------------------------------------------------------------------------

    def _to_low(self, value: Value) -> Value:
        found = self._low.get(value)
        if found is None:
            found = self._constant(value) or self._source(value) or self._convert(value, self.dtype)
            self._low[value] = found
        return found

    def _to_wide(self, value: Value) -> Value:
        found = self._wide.get(value)
        if found is None:
            found = self._wide[value] = self._convert(value, DType.F32)
        return found

    def _convert(self, value: Value, to: DType) -> Value:
        producer, graph = value.producer, value.owner
        if graph is None:
            raise AssertionError(f"{value!r} is a value of an erased node")
        before = graph.first if producer is None else producer.next
        builder = Builder(graph, before, () if producer is None else producer.loc)
        made = builder.op(cast, value, to=to)
        made.name = None if value.name is None else f"{value.name}.{to}"
        self.num_casts += 1
        return made

    def _source(self, value: Value) -> Value | None:
        """Returns the half-precision form of what a cast to f32 starts from, None otherwise."""
        producer = value.producer
        if producer is None or producer.op is not cast:
            return None
        source = producer.inputs[0]
        if source is None or source.dtype is DType.F64 or source in self._lowered:
            return None
        return source if source.dtype is self.dtype else self._convert(source, self.dtype)

    def _constant(self, value: Value) -> Value | None:
        """Returns a constant's half-precision form, None for other values."""
        producer = value.producer
        if producer is None or producer.graph is None:
            return None
        builder = Builder(producer.graph, producer.next)
        if producer.op is literal:
            array: np.ndarray[Any, Any] = producer.attrs["value"]
            made = builder.op(literal, value=array.astype(self.dtype.numpy))
        elif producer.op is weight:
            # something else needs it exact: two copies
            name = producer.attrs["name"]
            weights = self.module.weights
            if name not in self._copies:
                copy = DerivedWeight(Cast(derive(name, weights[name]), self.dtype))
                self._copies[name] = weights.add(f"{name}.{self.dtype}", copy, weights.role(name))
            made = builder.op(weight, name=self._copies[name])
        else:
            return None
        made.name = None if value.name is None else f"{value.name}.{self.dtype}"
        return made
