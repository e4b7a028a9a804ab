"""Legalization for files of standard operators: bodies run in the graph, where cleanup merges them.

An operator that the emission opset lacks is written as its body. Written while the file is emitted,
every layer would bring its own copy of what all layers share, such as a mask made from positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.backends.onnx.emitter import Emit, EmitTable
from regraft.backends.onnx.legalize.written import written_attention
from regraft.backends.onnx.ops import FAMILIES
from regraft.backends.onnx.opsets import choose_opset
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import LocalRule, Rewriter, RuleSet
from regraft.ir.types import TensorType

PROFILE = "onnx"


@dataclass(frozen=True, slots=True)
class StandardLegalizer:
    """Makes the rule of one legalization; implements `passes.legalize.Legalizer`.

    Args:
        families: Emitters, those of plugins among them.
    """

    families: Sequence[tuple[Emit, ...]] = FAMILIES

    def start(
        self,
        module: Module,
        dims: Mapping[str, int],
        opset: int | None,
        decided: Mapping[str, str],
    ) -> StandardLegalization:
        """Returns the rule for one module; see `passes.legalize.Legalizer`."""
        table = EmitTable(*self.families)
        return StandardLegalization(table, choose_opset(module, table, opset, PROFILE))


@dataclass(slots=True)
class StandardLegalization:
    """One run; implements `passes.legalize.Legalization`.

    Args:
        table: Emitter rows, which say what is emitted as its body.
        opset: The opset of the file.
    """

    table: EmitTable
    opset: int
    _inlined: Counter[str] = field(default_factory=Counter)

    @property
    def rules(self) -> RuleSet:
        """The one rule: an operator becomes its body."""
        return RuleSet(LocalRule("legalize-body", self._wants, self._apply))

    def decisions(self) -> Mapping[str, Any]:
        """Returns how many nodes of each operator became their body."""
        if not self._inlined:
            return {}
        return {"opset": self.opset, "bodies": dict(sorted(self._inlined.items()))}

    def skips(self) -> Sequence[tuple[str, str]]:
        """Returns nothing: what stays is emitted as it is."""
        return ()

    def _wants(self, op: OpSpec) -> bool:
        return op.body is not None

    def _apply(self, node: Node, rw: Rewriter) -> bool:
        if node.op.body is None or not self.table.is_inlined(node, self.opset, PROFILE):
            return False
        if not all(map(_is_known, node.inputs)):
            return False
        build = written_attention if node.op is attention else node.op.body
        made = build(node, rw.builder(node))
        self._inlined[node.op.name] += 1
        rw.replace(node, *((made,) if isinstance(made, Value) else made))
        return True


def _is_known(value: Value | None) -> bool:
    """Whether bodies can be built on a value: they need shapes and element types."""
    if value is None:
        return True
    return isinstance(value.type, TensorType) and None not in (value.type.dtype, value.type.shape)
