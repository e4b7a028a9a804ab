"""Emitter of custom PyTorch operators that a capture carried through: the call that they were."""

from __future__ import annotations

from typing import Any

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.weight_source import quoted
from regraft.ir.constants import opaque
from regraft.ir.types import DType

DIALECT = "torch:"


def _emit_opaque(e: EmitContext) -> str:
    (_, names), (_, is_list), *attributes = e.node.attrs["attributes"]
    arguments: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for idx, name in enumerate(names):
        if name.endswith("*"):
            lists.setdefault(name[:-1], []).append(e.input(idx))
        else:
            arguments[name] = e.input(idx)
    arguments |= {name: f"[{', '.join(items)}]" for name, items in lists.items()}
    arguments |= {name: _literal(e, item) for name, item in attributes}
    given = ", ".join(f"{name}={text}" for name, text in arguments.items())
    call = f"torch.ops.{e.node.attrs['op_type']}({given})"
    return f"{call}[0]" if is_list and len(e.node.outputs) == 1 else call


def _literal(e: EmitContext, item: Any) -> str:
    match item:
        case DType():
            return e.dtype(item)
        case tuple():
            return f"[{', '.join(_literal(e, each) for each in item)}]"
        case str():
            return quoted(item)
        case float():
            return repr(item) if abs(item) < float("inf") else f'float("{item}")'
        case _:
            return repr(item)


EMITS = (Emit(opaque, _emit_opaque),)
