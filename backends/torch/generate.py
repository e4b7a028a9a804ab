"""Writes the Python file of a module: imports, library functions, one class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.torch.emitter import Emit, EmitTable
from regraft.backends.torch.graph_emitter import GraphEmitter
from regraft.backends.torch.library import load, scope
from regraft.backends.torch.library_source import LibrarySource
from regraft.backends.torch.naming import RESERVED, identifier
from regraft.backends.torch.ops import FAMILIES
from regraft.backends.torch.part_calls import PartCalls
from regraft.backends.torch.part_classes import PartClasses, class_text
from regraft.backends.torch.parts import find_parts
from regraft.backends.torch.prepare import check_emittable, inline_bodies
from regraft.backends.torch.states import BUFFERS, held_states, hold
from regraft.backends.torch.weight_plan import WeightPlan, plan_weights
from regraft.backends.torch.weight_source import WeightSource, attribute, quoted, registrations
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType

OUTPUTS = "torch.outputs"
"""Key of `Module.meta`: what `forward` returns, a nest of tuples, lists and dicts of output names.

Without it, one output is returned as it is, several as a tuple.
"""

CLASS_NAME = "Model"


@dataclass(frozen=True, slots=True)
class Generated:
    """A module as Python source.

    Args:
        source: The text of the file; its class is `Model`.
        plan: The tensors that `Model` registers.
        inputs: Argument of `forward` -> name of the graph input.
        outputs: Names of the graph's outputs that it returns, in order.
        states: `buffers` or `explicit`.
    """

    source: str
    plan: WeightPlan
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    states: str


def generate(
    module: Module,
    *,
    families: Sequence[tuple[Emit, ...]] = FAMILIES,
    as_stored: bool = False,
    is_file: bool = False,
    states: str = BUFFERS,
) -> Generated:
    """Returns a module as Python source; reads no large tensor.

    Args:
        module: The module; it is not changed.
        families: Emitters by operator.
        as_stored: Register every stored weight under its own name, however it was derived.
        is_file: Whether the source becomes a file with a weights file beside it, and so has a
            function `load`.
        states: `buffers` or `explicit`; see `to_torch`.

    Raises:
        UnsupportedError: When an operator has no PyTorch form, naming all that have none.
    """
    table = EmitTable(*families)
    check_emittable(module, table)
    module = module.clone()
    inline_bodies(module, table)
    plan = plan_weights(module, as_stored=as_stored)
    kept = held_states(module) if states == BUFFERS else {}
    held = {value: attribute(hold(plan, module, state)) for value, state in kept.items()}
    inputs = _arguments([value for value in module.graph.inputs if value not in held])
    library, own = LibrarySource(), LibrarySource()
    groups = find_parts(module.graph, plan)
    calls = PartCalls(groups)
    classes = PartClasses(table, library, plan)
    for group in groups:
        calls.sizes[group] = classes.add(group)
    emitter = GraphEmitter(table, WeightSource(plan), library, tuple(inputs), calls)
    values = emitter.emit_main(module.graph, held)
    results = dict(zip(module.graph.output_names, values, strict=True))
    for value, state in kept.items():
        emitter.lines.add(f"{held[value]}.copy_({results.pop(state.output)}.detach())")
    if len(results) == 1 and not kept:
        results = {name: emitter.lines.take_last(text) for name, text in results.items()}
    nest = output_nest(module, tuple(results))
    returned = _nest(nest, results)
    emitter.lines.add(f"return {returned[1:-1] if isinstance(nest, tuple) else returned}")
    registered = [*classes.registrations, *registrations(plan, classes.paths)]
    functions = (line.strip().partition("(")[0] for line in registered + classes.lines)
    for name in ("Scope", *dict.fromkeys(functions)):
        if hasattr(scope, name):
            own.add(getattr(scope, name))
    if is_file:
        own.add(load.load)
    model = class_text(
        CLASS_NAME, "", registered, _signature(module, inputs, nest), emitter.lines.render(2)
    )
    header = _header(module, inputs, tuple(results))
    text = _file(header, library, own, [*classes.texts, model])
    return Generated(text, plan, inputs, tuple(results), states)


def _arguments(values: Sequence[Value]) -> dict[str, str]:
    """Returns the arguments of `forward` with the names of the inputs that they are."""
    arguments: dict[str, str] = {}
    for value in values:
        base = name = identifier(value.name or "input")
        number = 0
        while name in arguments or name in RESERVED:
            number += 1
            name = f"{base}_{number}"
        arguments[name] = value.name or ""
    return arguments


def output_nest(module: Module, names: tuple[str, ...]) -> Any:
    """Returns what `forward` returns: a nest of tuples, lists and dicts of output names.

    Args:
        module: The module.
        names: The outputs that it returns.
    """
    spec = module.meta.get(OUTPUTS)
    if spec is None or set(_leaves(spec)) != set(names):  # passes changed the outputs
        return names[0] if len(names) == 1 else names
    return spec


def _leaves(spec: Any) -> Iterator[str]:
    match spec:
        case str():
            yield spec
        case tuple() | list():
            for item in spec:
                yield from _leaves(item)
        case dict():
            for item in spec.values():
                yield from _leaves(item)


def _nest(spec: Any, results: Mapping[str, str]) -> str:
    match spec:
        case str():
            return results[spec]
        case tuple():
            items = [_nest(item, results) for item in spec]
            return f"({', '.join(items)},)" if len(items) == 1 else f"({', '.join(items)})"
        case list():
            return f"[{', '.join(_nest(item, results) for item in spec)}]"
        case dict():
            pairs = (f"{quoted(key)}: {_nest(item, results)}" for key, item in spec.items())
            return f"{{{', '.join(pairs)}}}"
        case _:
            return repr(spec)


def _signature(module: Module, inputs: Mapping[str, str], nest: Any) -> str:
    types = module.input_types
    arguments = [
        f"{name}: Tensor" if isinstance(types.get(source), TensorType) else name
        for name, source in inputs.items()
    ]
    returned = " -> Tensor" if isinstance(nest, str) else ""
    return f"def forward({', '.join(['self', *arguments])}){returned}:"


def _header(module: Module, inputs: Mapping[str, str], outputs: tuple[str, ...]) -> list[str]:
    lines = [f"{module.name}, generated by regraft.", ""]
    types = module.input_types
    for name, source in inputs.items():
        lines.append(f"{name}: {types[source]}" + ("" if name == source else f" (`{source}`)"))
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
    imports = "\n\n".join("\n".join(block) for block in blocks if block)
    return f'"""{docstring}\n"""\n\n{imports}\n\n\n{code}\n'
