"""Which tensors of an exported program share memory, where a file did not keep it."""

from __future__ import annotations

import torch
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from regraft.frontends.torch.nodes import placeholders, written_arguments


def restore_memory(program: torch.export.ExportedProgram) -> None:
    """Runs a program that was read from a file on fake tensors, so that views share memory again.

    Only where calls write in place: nothing else asks who shares memory.
    """
    parts = [
        part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)
    ]
    if not any(written_arguments(node) for part in parts for node in part.graph.nodes):
        return
    values = [node.meta["val"] for node in placeholders(program.graph)]
    modes = [v.fake_mode for v in values if isinstance(v, torch._subclasses.FakeTensor)]
    kept = {node: node.meta.get("val") for node in program.graph.nodes}
    with torch.no_grad():
        FakeTensorProp(
            program.graph_module, modes[0] if modes else None
        ).propagate_dont_convert_inputs(*values)
    for node, value in kept.items():
        if not _has_tensors(value):
            node.meta["val"] = value  # numbers keep the symbols that they have in the file


def _has_tensors(value: object) -> bool:
    items = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(item, torch.Tensor) for item in items)
