"""The emission opset: the source's, raised only when an operator needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from regraft.backends.onnx.emitter import MAX_OPSET, MIN_OPSET, NEWEST_OPSET, EmitTable
from regraft.backends.onnx.half_types import least_opset_of_types
from regraft.ir.constants import literal, opaque, weight
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.graph import Node
from regraft.ir.module import Module

MAX_IR_VERSION = 13
"""The newest IR version that ONNX Runtime 1.31 loads; every opset up to 28 is fine with it."""


def choose_opset(module: Module, table: EmitTable, requested: int | None, profile: str) -> int:
    """Returns the smallest opset, not below the source's, at which every node can be emitted.

    Where none is requested, it is also one at which the profile's runtime has the operators
    themselves. Opaque nodes need an opset at which their schema is the one they were loaded with.

    Raises:
        UsageError: When `requested` is out of range.
        UnsupportedError: When no opset fits, naming the node and the versions.
    """
    if requested is not None and not MIN_OPSET <= requested <= NEWEST_OPSET:
        raise UsageError(
            f"opset {requested} is out of range", hint=f"{MIN_OPSET} to {NEWEST_OPSET}"
        )
    source: int = module.meta.get("onnx.opset") or MIN_OPSET
    least, needs = _least_opset(module, table)
    if requested is None:
        start = max(least, min(source, MAX_OPSET))
        wanted = max(start, _wanted_opset(module, table, profile))
        # opsets that runtimes do not load by default are a last resort for opaque operators, those
        # at which operators are written out the very last
        candidates: Sequence[int] = [
            *range(wanted, max(MAX_OPSET, source, least) + 1),
            *range(start, wanted),
        ]
    elif needs is not None and least > requested:
        raise UnsupportedError(
            f"operator `{needs.op.name}`{_where(needs)} needs opset {least}, "
            f"{requested} was requested",
            hint=f"ask for {least}, or for none: the least that holds everything is taken",
        )
    else:
        candidates = [requested]
    opaques = _opaque_schemas(module)
    for opset in candidates:
        if all(_schema_unchanged(op_type, version, opset) for op_type, version in opaques):
            return opset
    raise _explain(opaques, candidates)


def _least_opset(module: Module, table: EmitTable) -> tuple[int, Node | None]:
    """Returns the least opset at which every operator has a row, and the node that needs it."""
    least, needs = MIN_OPSET, None
    for node in module.graph.walk():
        if node.op in (literal, weight, opaque):
            continue
        wanted = table.min_opset(node)
        if wanted is None:
            raise UnsupportedError(
                f"operator `{node.op.name}`{_where(node)} cannot be emitted as ONNX"
            )
        wanted = max(wanted, least_opset_of_types(node))
        if wanted > least:
            least, needs = wanted, node
    return least, needs


def _wanted_opset(module: Module, table: EmitTable, profile: str) -> int:
    nodes = module.graph.walk()
    return max((table.wanted_opset(node, profile) for node in nodes), default=MIN_OPSET)


def _opaque_schemas(module: Module) -> dict[tuple[str, int], Node]:
    """Returns the (operator, since-version) of opaque standard operators, each with a node."""
    found: dict[tuple[str, int], Node] = {}
    for node in module.graph.walk():
        if node.op is opaque and node.attrs["dialect"] == "onnx:":
            found.setdefault((node.attrs["op_type"], node.attrs["version"]), node)
    return found


def _explain(
    opaques: Mapping[tuple[str, int], Node], candidates: Sequence[int]
) -> UnsupportedError:
    for (op_type, version), node in opaques.items():
        if not any(_schema_unchanged(op_type, version, opset) for opset in candidates):
            return UnsupportedError(
                f"operator `{op_type}`{_where(node)} is of opset version {version}, "
                f"which opsets {min(candidates)} to {max(candidates)} no longer have",
                hint="convert the model to a newer opset first",
            )
    names = ", ".join(f"{op_type}-{version}" for op_type, version in opaques)
    return UnsupportedError(f"no opset from {min(candidates)} has all of {names} unchanged")


def _schema_unchanged(op_type: str, version: int, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError:
        return False
    return int(schema.since_version) == version and not schema.deprecated


def _where(node: Node) -> str:
    return f" ({node.loc[0]})" if node.loc else ""


def ir_version(opset: int) -> int:
    """Returns the IR version to write for an opset."""
    known = helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), MAX_IR_VERSION)
    return min(int(known), MAX_IR_VERSION)
