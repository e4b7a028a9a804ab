"""Writes the Python file of a module: imports, library functions, one class."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from regraft.backends.torch.calling import CallForm, Taken, call_form, taken
from regraft.backends.torch.emitter import Emit, EmitTable, Fusions
from regraft.backends.torch.graph_emitter import GraphEmitter
from regraft.backends.torch.library import load, scope
from regraft.backends.torch.library_source import LibrarySource
from regraft.backends.torch.naming import RESERVED, plain_text
from regraft.backends.torch.ops import FAMILIES
from regraft.backends.torch.part_calls import PartCalls
from regraft.backends.torch.part_classes import PartClasses, class_text
from regraft.backends.torch.parts import find_parts
from regraft.backends.torch.prepare import check_emittable, inline_bodies
from regraft.backends.torch.results import ResultSource
from regraft.backends.torch.states import (
    BUFFERS,
    held_states,
    hold,
    write_states,
    written_inputs,
)
from regraft.backends.torch.weight_plan import WeightPlan, plan_weights
from regraft.backends.torch.weight_source import WeightSource, attribute, registrations
from regraft.ir.call_form import Nest
from regraft.ir.dims import Dim
from regraft.ir.graph import Value
from regraft.ir.module import Module, State
from regraft.ir.types import TensorType

CLASS_NAME = "Model"
BESIDE = "kernels"
"""The Python file beside the generated one that emitters of kernels call."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A module as Python source.

    Args:
        source: The text of the file; its class is `Model`.
        plan: The tensors that `Model` registers.
        inputs: Names of the graph inputs that `forward` takes, in order.
        outputs: Names of the graph's outputs that it returns, in order.
        form: How `forward` is called.
        states: `buffers` or `explicit`.
    """

    source: str
    plan: WeightPlan
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    form: CallForm
    states: str


def generate(
    module: Module,
    *,
    families: Sequence[tuple[Emit, ...]] = FAMILIES,
    fusions: Fusions | None = None,
    as_stored: bool = False,
    is_file: bool = False,
    loader: Callable[..., Any] = load.load,
    states: str = BUFFERS,
    is_flat: bool = False,
) -> Generated:
    """Returns a module as Python source; reads no large tensor.

    Args:
        module: The module; it is not changed.
        families: Emitters by operator.
        fusions: Emitters of several nodes; None for those of PyTorch.
        as_stored: Register every stored weight under its own name, however it was derived.
        is_file: Whether the source becomes a file with a weights file beside it, and so has a
            function `load`.
        loader: That function, of the library.
        states: `buffers` or `explicit`; see `to_torch`.
        is_flat: Whether `forward` takes its inputs one after the other and returns all outputs,
            however the captured call was made.

    Raises:
        UnsupportedError: When an operator has no PyTorch form, naming all that have none.
    """
    table = EmitTable(*families, fusions=fusions)
    check_emittable(module, table)
    module = module.clone()
    inline_bodies(module, table)
    plan = plan_weights(module, as_stored=as_stored)
    kept = held_states(module) if states == BUFFERS else {}
    held = {value: attribute(hold(plan, module, state)) for value, state in kept.items()}
    given = [value for value in module.graph.inputs if value not in held]
    names = tuple(value.name or "" for value in given)
    written = {} if is_flat or states != BUFFERS else written_inputs(module, held)
    gone = {state.output for state in [*kept.values(), *written.values()]}
    outputs = tuple(name for name in module.graph.output_names if name not in gone)
    form = call_form(module, names, outputs, is_flat=is_flat)
    library, own = LibrarySource(), LibrarySource()
    types = module.input_types
    arguments = taken(form, RESERVED, lambda name: isinstance(types[name], TensorType), library)
    groups = find_parts(module.graph, plan)
    calls = PartCalls(groups)
    classes = PartClasses(table, library, plan)
    for group in groups:
        calls.sizes[group] = classes.add(group)
    variables = tuple(arguments.variables[name] for name in names)
    emitter = GraphEmitter(table, WeightSource(plan), library, variables, calls)
    for name in arguments.names:
        emitter.variables.reserve(name)
    for line in arguments.lines:
        emitter.lines.add(line)
    values = emitter.emit_main(module.graph, held)
    results = dict(zip(module.graph.output_names, values, strict=True))
    write_states(emitter, module, {**held, **_variables(written, given, variables)},
                 {**kept, **written}, results)  # fmt: skip
    if len(results) == 1 and not kept and not written:
        results = {name: emitter.lines.take_last(text) for name, text in results.items()}
    source = ResultSource(own, is_file, partial(_size_of, emitter, module))
    returned = source.text(form.result, results)
    is_row = isinstance(form.result, tuple) and form.result
    emitter.lines.add(f"return {returned[1:-1] if is_row else returned}")
    registered = [*classes.registrations, *registrations(plan, classes.paths)]
    functions = (line.strip().partition("(")[0] for line in registered + classes.lines)
    for name in ("Scope", *dict.fromkeys(functions)):
        if hasattr(scope, name):
            own.add(getattr(scope, name))
    if is_file:
        own.add(loader)
    model = class_text(
        CLASS_NAME, "", registered, _signature(arguments, form.result), emitter.lines.render(2)
    )
    header = _header(module, arguments.variables, outputs)
    text = _file(header, library, own, [*classes.texts, model])
    return Generated(text, plan, names, outputs, form, states)


def _variables(
    written: Mapping[Value, State], given: Sequence[Value], variables: Sequence[str]
) -> dict[Value, str]:
    """Returns the variables of the inputs that `forward` writes to."""
    names = dict(zip(given, variables, strict=True))
    return {value: names[value] for value in written}


def _size_of(emitter: GraphEmitter, module: Module, name: str) -> str:
    """Returns the Python integer of an output that is a size."""
    value = module.graph.outputs[module.graph.output_names.index(name)]
    if isinstance(value.content, int | Dim):
        return emitter.size(value.content)
    return f"{emitter.expression(value)}.item()"


def _signature(arguments: Taken, result: Nest) -> str:
    returned = " -> Tensor" if isinstance(result, str) else ""
    return f"def forward({', '.join(['self', *arguments.signature])}){returned}:"


def _header(module: Module, variables: Mapping[str, str], outputs: tuple[str, ...]) -> list[str]:
    lines = [f"{plain_text(module.name)}, generated by regraft.", ""]
    types = module.input_types
    for source, name in variables.items():
        called = "" if name == source else f" (`{plain_text(source)}`)"
        lines.append(f"{name}: {types[source]}{called}")
    lines.append("returns:")
    for name, value in zip(module.graph.output_names, module.graph.outputs, strict=True):
        if name in outputs:
            lines.append(f"    {name}: {value.type}")
    return lines


def _file(header: list[str], library: LibrarySource, own: LibrarySource, classes: list[str]) -> str:
    """Returns the file: docstring, imports, library functions, classes, `load`."""
    sources = dict(library.sources) | dict(own.sources)
    last = sources.pop("load", None)  # it names the class
    code = "\n\n\n".join([*sources.values(), *classes, *([last] if last else [])])
    docstring = "\n".join(header).replace("\\", "\\\\").replace('"""', "'''")
    blocks = [["from __future__ import annotations"], library.import_lines(own), ["import torch"]]
    if re.search(r"\bF\.", code):
        blocks[-1].append("import torch.nn.functional as F")
    blocks[-1].append("from torch import Tensor, nn")
    if re.search(rf"(?<![.\w]){BESIDE}\.", code):
        blocks.append(
            ["if __package__:", f"    from . import {BESIDE}", "else:", f"    import {BESIDE}"]
        )
    imports = "\n\n".join("\n".join(block) for block in blocks if block)
    return f'"""{docstring}\n"""\n\n{imports}\n\n\n{code}\n'
