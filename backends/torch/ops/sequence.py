"""Emitters of sequences, which are Python lists, and of optionals, which may be None."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library import sequences as library
from regraft.backends.torch.ops.params import operand, sizes_param
from regraft.ir.ops import optional, sequence
from regraft.ir.types import SequenceType


def _emit_insert(e: EmitContext) -> str:
    items, item, at = e.input(0), e.input(1), e.optional(2)
    if at is None:
        return f"[*{items}, {item}]"
    return f"{e.helper(library.insert_item)}({items}, {item}, int({at}))"


def _emit_erase(e: EmitContext) -> str:
    at = e.optional(1)
    if at is None:
        return f"{e.input(0)}[:-1]"
    return f"{e.helper(library.erase_item)}({e.input(0)}, int({at}))"


def _emit_split(e: EmitContext) -> str:
    axis, split, value = e.attr("axis"), sizes_param(e, "split"), e.node.operand("split")
    if split is None:
        if e.attr("keepdims"):
            return f"list({e.input(0)}.split(1, dim={axis}))"
        return f"list({e.input(0)}.unbind({axis}))"
    static = e.node.static("split")
    is_scalar = value.rank == 0 if value is not None else not isinstance(static, tuple)
    if is_scalar:
        split = f"{split}[0]"
    return f"list({e.input(0)}.split({split}, dim={axis}))"


def _emit_concat(e: EmitContext) -> str:
    return f"torch.{'stack' if e.attr('new_axis') else 'cat'}({e.input(0)}, dim={e.attr('axis')})"


def _emit_has_element(e: EmitContext) -> str:
    value = e.optional(0)
    found = "False" if value is None else f"{value} is not None"
    return f"torch.tensor({found}, device={e.device})"


def _copy(e: EmitContext) -> str:
    is_list = isinstance(operand(e, 0).type, SequenceType)
    return f"list({e.input(0)})" if is_list else e.input(0)


EMITS = (
    Emit(sequence.sequence_empty, lambda e: "[]"),
    Emit(sequence.sequence_construct, lambda e: f"[{', '.join(e.inputs)}]"),
    Emit(sequence.sequence_insert, _emit_insert),
    Emit(sequence.sequence_erase, _emit_erase),
    Emit(sequence.sequence_at, lambda e: f"{e.input(0)}[int({e.input(1)})]"),
    Emit(sequence.sequence_length, lambda e: f"torch.tensor(len({e.input(0)}), device={e.device})"),
    Emit(sequence.split_to_sequence, _emit_split),
    Emit(sequence.concat_from_sequence, _emit_concat),
    Emit(optional.optional, lambda e: e.optional(0) or "None"),
    Emit(optional.optional_has_element, _emit_has_element),
    Emit(optional.optional_get_element, _copy),
)
