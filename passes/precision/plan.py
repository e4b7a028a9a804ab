"""The plan of `cast`: which nodes compute in half precision, which weights are stored in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from regraft.ir.constants import literal, weight
from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.cast import cast
from regraft.ir.opspec import Trait
from regraft.ir.types import DType, TensorType
from regraft.passes.analysis.sizes import size_arithmetic
from regraft.passes.precision.kinds import follows_operands, reason_to_keep, stays_f32
from regraft.passes.precision.ranges import Ranges

SMALL_WEIGHT_BYTES = 1024
"""A weight of a node that stays in f32 is stored in f32 up to this size, and in half above it."""

_HALF = (DType.F16, DType.BF16)

BY_OPTION = "kept by option"


@dataclass(slots=True)
class Plan:
    """What `cast` will do.

    Attributes:
        low: Nodes that will compute in half precision.
        kept: Nodes with f32 operands or results that stay, with the reason.
        weights: Names of weights that will be stored in half precision.
        interface: Inputs and outputs of the model that change type.
    """

    low: set[Node] = field(default_factory=set)
    kept: dict[Node, str] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    interface: set[Value] = field(default_factory=set)


def make_plan(
    module: Module,
    ranges: Ranges,
    keep: Sequence[str],
    *,
    casts_interface: bool = False,
    kept_by_name: frozenset[str] = frozenset(),
) -> Plan:
    """Decides for every node; changes nothing; cost O(nodes).

    Args:
        module: The module.
        ranges: Magnitudes of its values.
        keep: Operator names, value names and `re:` patterns of value names that stay in f32.
        casts_interface: Whether inputs and outputs of the model change type, where in range.
        kept_by_name: Values whose nodes an earlier run kept (decisions that are replayed).

    Raises:
        UsageError: When an entry of `keep` names nothing.
    """
    plan = Plan()
    wanted = _matcher(module, keep)
    sizes = size_arithmetic(module.graph)
    for node in module.graph.walk():
        if Trait.CONSTANT in node.op.traits or node.op is cast or not _has_f32(node):
            continue  # casts are made anew where types meet
        reason = BY_OPTION if wanted(node) else _reason(node, ranges, sizes)
        if reason is None and node.outputs[0].name in kept_by_name:
            reason = "kept by the recorded decision"
        if reason is None:
            plan.low.add(node)
        else:
            plan.kept[node] = reason
    if casts_interface:
        ends = (*module.graph.inputs, *module.graph.outputs)
        plan.interface = {
            value for value in ends if value.dtype is DType.F32 and ranges.problem(value) is None
        }
    _follow(module.graph, plan)
    _choose_weights(module, plan, ranges)
    return plan


def _has_f32(node: Node) -> bool:
    return any(v is not None and v.dtype is DType.F32 for v in (*node.inputs, *node.outputs))


def _reason(node: Node, ranges: Ranges, sizes: set[Node]) -> str | None:
    if node in sizes:
        return "it computes sizes"
    reason = reason_to_keep(node)
    if reason is not None:
        return reason
    for value in node.inputs:
        if value is not None and isinstance(value.type, TensorType) and value.dtype is None:
            return "an operand has an unknown element type"
        if value is not None and not isinstance(value.type, TensorType):
            return "an operand is no tensor"
    for idx, operand in enumerate(node.inputs):
        if operand is not None and operand.dtype is DType.F32 and not stays_f32(node, idx):
            problem = ranges.problem(operand)
            if problem is not None:
                return problem
    for result in node.outputs:
        problem = ranges.problem(result) if result.dtype is DType.F32 else None
        if problem is not None:
            return problem
    return ranges.problem_inside(node)


# -- neighbours ------------------------------------------------------------------------------------


def _follow(graph: Graph, plan: Plan) -> None:
    """Lets data movement and lone element-wise nodes take the type of what surrounds them."""
    for node in graph:
        for body in node.bodies:
            _follow(body, plan)
        if node not in plan.low:
            continue
        sources = [v for v in node.inputs if v is not None and v.dtype is DType.F32]
        moving = [v for v in sources if not _is_constant(v)]
        if not moving or any(_is_low(v, plan) for v in moving):
            continue
        # every operand comes from f32: lowering here only pays when a user wants it
        wants = [
            user in plan.low if isinstance(user, Node) else value in plan.interface
            for value in node.outputs
            for user, _ in value.uses
        ]
        produced = any(v.producer is not None for v in moving)
        if follows_operands(node) and (produced or not all(wants)):
            plan.low.discard(node)  # the conversion comes after it, where it is needed
        elif Trait.ELEMENTWISE in node.op.traits and not any(wants):
            plan.low.discard(node)


def _is_low(value: Value, plan: Plan) -> bool:
    """Returns whether the value exists in half precision without a conversion."""
    producer = value.producer
    if producer is None:
        return value in plan.interface
    source = producer.inputs[0] if producer.op is cast else None
    return producer in plan.low or (source is not None and source.dtype in _HALF)


def _is_constant(value: Value) -> bool:
    return value.producer is not None and Trait.CONSTANT in value.producer.op.traits


# -- weights ---------------------------------------------------------------------------------------


def _choose_weights(module: Module, plan: Plan, ranges: Ranges) -> None:
    """A weight is stored in half precision where it is in range and nothing needs it exact."""
    uses: dict[str, list[Value]] = {}
    for node in module.graph.walk():
        if node.op is weight and node.output.dtype is DType.F32:
            uses.setdefault(node.attrs["name"], []).append(node.output)
    for name, values in uses.items():
        if any(ranges.problem(value) for value in values):
            continue
        has_low_use, is_exact = False, False
        for value in values:
            for user, idx in value.uses:
                if isinstance(user, Node) and user in plan.low and not stays_f32(user, idx):
                    has_low_use = True
                else:
                    is_exact |= _needs_exact(user, plan)
        is_large = module.weights[name].nbytes > SMALL_WEIGHT_BYTES
        if not is_exact and (has_low_use or is_large):
            plan.weights.add(name)


def _needs_exact(user: Node | Graph, plan: Plan) -> bool:
    if isinstance(user, Graph):
        return False
    reason = plan.kept.get(user, "")
    if reason == BY_OPTION or reason.startswith(("it computes sizes", "quantized")):
        return True
    return user.op in (weight, literal) or bool(user.bodies)


# -- the option ------------------------------------------------------------------------------------


def _matcher(module: Module, keep: Sequence[str]) -> Callable[[Node], bool]:
    names: set[str] = set()
    patterns: list[tuple[str, re.Pattern[str]]] = []
    for entry in keep:
        if not entry.startswith("re:"):
            names.add(entry.replace("-", "_") if _is_operator(module, entry) else entry)
            continue
        try:
            patterns.append((entry, re.compile(entry[3:])))
        except re.error as error:
            raise UsageError(f"pass `cast`, option `keep`: `{entry}`: {error}") from error
    found: set[str] = set()

    def wanted(node: Node) -> bool:
        hits = {node.op.name} & names
        for value in node.outputs:
            if value.name is not None:
                hits |= {value.name} & names
                hits |= {text for text, pattern in patterns if pattern.search(value.name)}
        found.update(hits)
        return bool(hits)

    for node in module.graph.walk():
        wanted(node)
    unknown = sorted((names | {text for text, _ in patterns}) - found)
    if unknown:
        known = {node.op.name for node in module.graph.walk()} | {
            value.name for node in module.graph.walk() for value in node.outputs if value.name
        }
        close = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        raise UsageError(
            f"pass `cast`, option `keep`: `{unknown[0]}` names no operator and no value",
            hint=f"did you mean `{close[0]}`?" if close else "names are those of `regraft opt`",
        )
    return wanted


def _is_operator(module: Module, entry: str) -> bool:
    name = entry.replace("-", "_")
    return any(node.op.name == name for node in module.graph.walk())
