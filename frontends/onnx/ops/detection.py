"""Importers of detection operators."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.graph import Value
from regraft.ir.ops import detection as ops


def _non_max_suppression(item: NodeImport) -> Value:
    return item.b.op(
        ops.non_max_suppression, *item.inputs,
        center_point_box=bool(item.attr("center_point_box", 0)),
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (Import("NonMaxSuppression", {10: _non_max_suppression}),)
