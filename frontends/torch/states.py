"""States of an exported program: buffers and inputs that it writes to, caches that it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.nodes import storage_of, written_arguments
from regraft.ir.constants import weight
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module, State, StateKind

_CACHE = "past_key_values"


def written_storages(program: torch.export.ExportedProgram) -> frozenset[int]:
    """Returns the identities of all memory that in-place calls of the program write to."""
    found: set[int] = set()
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                for arg in written_arguments(node):
                    val = arg.meta.get("val")
                    if isinstance(val, torch.Tensor):
                        found.add(storage_of(val))
    return frozenset(found)


def add_buffer_states(module: Module, written: Mapping[str, tuple[Value, Handle]]) -> None:
    """Links buffers that the program writes to with their next content.

    A buffer whose content no output depends on (a counter of batches) is dropped with a warning.

    Args:
        module: The module with its outputs; buffers that are written to are graph inputs.
        written: The graph input and the last content by name of the buffer.
    """
    graph = module.graph
    nexts = {name: (before, handle.read()) for name, (before, handle) in written.items()}
    needed = _needed(graph, dict(nexts.values()))
    dropped = []
    for name, (before, after) in nexts.items():
        if before in needed and after is not before:
            graph.add_output(f"{name}.next", after)
            module.states += (State(name, name, f"{name}.next", StateKind.BUFFER),)
            continue
        if after is not before:
            dropped.append(name)
        constant = graph.create(weight, (), {"name": name}, before=graph.first).output
        before.replace_all_uses_with(constant)
        graph.remove_input(before.index)
        constant.name = name
    if dropped:
        module.warnings.append(
            f"{len(dropped)} buffers are updated but no output depends on them, the updates are "
            f"dropped: {', '.join(dropped[:5])}"
        )


def add_input_states(module: Module, given: Mapping[str, tuple[Value, Handle]]) -> None:
    """Links inputs that the program writes to (a static cache) with their next content."""
    for name, (before, handle) in given.items():
        after = handle.read()
        if after is not before:
            head, dot, rest = name.partition(".")
            output = f"present{dot}{rest}" if head == _CACHE else f"{name}.next"
            if output not in module.graph.output_names:
                module.graph.add_output(output, after)
            kind = StateKind.KV_CACHE if head == _CACHE else StateKind.BUFFER
            if all(state.input != name for state in module.states):
                module.states += (State(name, name, output, kind),)


def _needed(graph: Graph, nexts: Mapping[Value, Value]) -> set[Value]:
    """Returns every value that an output depends on, through the next content of buffers too."""
    seen: set[Value] = set()
    stack: list[Value] = list(graph.outputs)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in nexts:
            stack.append(nexts[value])
        if value.producer is not None:
            stack += [item for item in value.producer.inputs if item is not None]
    return seen


def link_caches(inputs: Iterable[str], outputs: Sequence[str]) -> tuple[State, ...]:
    """Returns the states of caches that are taken and returned: `past_key_values`, `present`."""
    given = set(outputs)
    states = []
    for name in inputs:
        head, dot, rest = name.partition(".")
        after = f"present{dot}{rest}"
        if head == _CACHE and after in given:
            states.append(State(name, name, after, StateKind.KV_CACHE))
    return tuple(states)


__all__ = ["add_buffer_states", "link_caches", "written_storages"]
