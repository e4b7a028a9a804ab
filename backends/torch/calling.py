"""Arguments and result of a generated `forward`: those of the captured one, however they nest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from regraft.backends.torch.library import calling
from regraft.backends.torch.library_source import LibrarySource
from regraft.backends.torch.naming import identifier
from regraft.backends.torch.weight_source import quoted
from regraft.ir.call_form import (
    OUTPUTS,
    Kind,
    Nest,
    Parameter,
    Special,
    is_constant,
    leaves,
    parameters,
    special,
)
from regraft.ir.module import Module


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a generated `forward` is called.

    Args:
        parameters: Its parameters; those that are leaves are inputs of the graph.
        result: The nest that it returns.
    """

    parameters: tuple[Parameter, ...]
    result: Nest

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Returns positional and keyword arguments that hold values by name of the input."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self.parameters:
            given = filled(parameter.nest, values)
            if parameter.kind is Kind.POSITIONAL:
                args.append(given)
            else:
                kwargs[parameter.name] = given
        return args, kwargs


def call_form(
    module: Module, inputs: Sequence[str], outputs: Sequence[str], *, is_flat: bool = False
) -> CallForm:
    """Returns how the `forward` of a module is called.

    That of the captured module, where inputs and outputs still are the same; else the inputs one
    after the other, and the output as it is, or several as a tuple.

    Args:
        module: The module.
        inputs: The inputs that `forward` takes.
        outputs: The outputs that it returns.
        is_flat: Whether the captured call does not count.
    """
    flat = tuple(Parameter(name, Kind.POSITIONAL, name) for name in inputs)
    found = None if is_flat else parameters(module.meta)
    if found is not None:
        named = [name for parameter in found for name in leaves(parameter.nest)]
        rest = [name for name in inputs if name not in named]
        if set(named) <= set(inputs) and len(set(named)) == len(named):
            more = tuple(Parameter(name, Kind.KEYWORD, name) for name in rest)
            flat = found + more
    result: Nest = None if is_flat else module.meta.get(OUTPUTS)
    if result is None or set(leaves(result)) != set(outputs):  # passes changed the outputs
        result = outputs[0] if len(outputs) == 1 else tuple(outputs)
    return CallForm(flat, result)


# -- what `forward` takes -----------------------------------------------------------------------


@dataclass(slots=True)
class Taken:
    """The parameters of `forward` as source.

    Attributes:
        signature: Parameters with defaults.
        lines: Statements at the start of `forward` that read what is nested.
        variables: Variable by name of the graph input.
        names: The parameters.
    """

    signature: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def taken(
    form: CallForm, reserved: frozenset[str], is_tensor: Callable[[str], bool],
    library: LibrarySource,
) -> Taken:  # fmt: skip
    """Returns the parameters of `forward` and the lines that read them.

    Args:
        form: How it is called.
        reserved: Names that the generated code uses.
        is_tensor: Whether an input is a tensor.
        library: Gets the functions that the lines call.
    """
    found = Taken()
    used = set(reserved)
    names = found.names
    for parameter in form.parameters:
        names.append(_free(identifier(parameter.name or "input"), used))
    has_default = _with_defaults(form.parameters)
    star = False
    for parameter, name, default in zip(form.parameters, names, has_default, strict=True):
        if parameter.kind is Kind.KEYWORD and not star:
            star = True
            found.signature.append("*")
        nest = parameter.nest
        if isinstance(nest, str):
            found.variables[nest] = name
            found.signature.append(f"{name}: Tensor" if is_tensor(nest) else name)
            continue
        if is_constant(nest) and special(nest) in (None, Special.TEXT) and not _is_tree(nest):
            text = literal(nest)
            found.signature.append(f"{name}={text}" if default else name)
            check = library.add(calling.expect)
            found.lines.append(f"{check}({quoted(parameter.name)}, {name}, {text})")
            continue
        found.signature.append(name)
        _read(nest, name, used, found, library)
    return found


def _free(name: str, used: set[str]) -> str:
    base, number = name, 0
    while name in used:
        number += 1
        name = f"{base}_{number}"
    used.add(name)
    return name


def _is_tree(nest: Nest) -> bool:
    return isinstance(nest, tuple | list) or (isinstance(nest, Mapping) and special(nest) is None)


def _with_defaults(found: Sequence[Parameter]) -> list[bool]:
    """Returns which parameters may have a default: constants after which no tensor must come."""
    result = []
    may = True
    for parameter in reversed(found):
        is_scalar = is_constant(parameter.nest) and not _is_tree(parameter.nest)
        if parameter.kind is Kind.POSITIONAL:
            may = may and is_scalar
            result.append(may)
        else:
            result.append(is_scalar)
    return result[::-1]


def _read(nest: Nest, text: str, used: set[str], found: Taken, library: LibrarySource) -> None:
    """Adds the lines that read the leaves of a nest."""
    if isinstance(nest, str):
        variable = _free(identifier(nest), used)
        found.lines.append(f"{variable} = {text}")
        found.variables[nest] = variable
        return
    if special(nest) is Special.SIZE:
        variable = _free(identifier(f"{nest['name']}_tensor"), used)
        found.lines.append(f"{variable} = torch.as_tensor({text})")
        found.variables[nest["name"]] = variable
        return
    for child, inner in _places(nest, text, library):
        if not is_constant(child):
            _read(child, inner, used, found, library)


def _places(nest: Nest, text: str, library: LibrarySource) -> list[tuple[Nest, str]]:
    """Returns the nests inside a nest with the expressions that read them."""
    match special(nest):
        case None:
            items = nest.items() if isinstance(nest, Mapping) else enumerate(nest)
            return [(child, f"{text}[{literal(key)}]") for key, child in items]
        case Special.LIST:
            return [(child, f"{text}[{i}]") for i, child in enumerate(nest["items"])]
        case Special.DICT:
            pairs = zip(nest["keys"], nest["items"], strict=True)
            return [(child, f"{text}[{key!r}]") for key, child in pairs]
        case Special.OBJECT | Special.TUPLE:
            return [(child, f"{text}.{name}") for name, child in nest["fields"].items()]
        case Special.STRUCT:
            return [(child, f"{text}[{i}]") for i, child in enumerate(nest["fields"].values())]
        case Special.CACHE:
            return [
                (child, f"{text}.layers[{i}].{name}")
                for i, layer in enumerate(nest["layers"])
                for name, child in zip(("keys", "values"), layer, strict=True)
            ]
        case _:
            children = f"{library.add(calling.children_of)}({text})"
            return [(c, f"{children}[{i}]") for i, c in enumerate(nest["fields"].values())]


def literal(nest: Nest) -> str:
    """Returns a constant as Python source."""
    if special(nest) is Special.TEXT:
        return quoted(nest["value"])
    if isinstance(nest, str):
        return quoted(nest)
    if isinstance(nest, float) and nest - nest != 0:  # infinite or NaN
        return f'float("{nest}")'
    return repr(nest)


def filled(nest: Nest, values: Mapping[str, Any]) -> Any:
    """Returns a nest with values in the place of its leaves, in classes of Python's own."""
    if isinstance(nest, str):
        return values[nest]
    match special(nest):
        case Special.TEXT:
            return nest["value"]
        case Special.SIZE:
            return int(values[nest["name"]])
        case Special.LIST:
            return [filled(item, values) for item in nest["items"]]
        case Special.DICT:
            return {k: filled(item, values) for k, item in zip(nest["keys"], nest["items"],
                                                               strict=True)}  # fmt: skip
        case Special.OBJECT | Special.TUPLE:
            fields = nest["fields"].items()
            return SimpleNamespace(**{name: filled(item, values) for name, item in fields})
        case Special.STRUCT | Special.NODE:
            return tuple(filled(item, values) for item in nest["fields"].values())
        case Special.CACHE:
            pairs = [[filled(item, values) for item in layer] for layer in nest["layers"]]
            return SimpleNamespace(layers=[SimpleNamespace(keys=k, values=v) for k, v in pairs])
    if isinstance(nest, tuple | list):
        return tuple(filled(item, values) for item in nest)
    if isinstance(nest, Mapping):
        return {key: filled(item, values) for key, item in nest.items()}
    return nest
