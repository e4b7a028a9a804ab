"""Classes of repeated parts: one `nn.Module` class for each group of equal parts."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.torch.emitter import EmitTable
from regraft.backends.torch.graph_emitter import GraphEmitter
from regraft.backends.torch.library_source import LibrarySource
from regraft.backends.torch.naming import RESERVED, identifier, plain_text, variable_hint
from regraft.backends.torch.parts import PartGroup
from regraft.backends.torch.weight_plan import Slot, WeightPlan
from regraft.backends.torch.weight_source import (
    WeightSource,
    is_inline,
    quoted,
    registrations,
)
from regraft.ir.dims import Symbol
from regraft.ir.types import TensorType


class PartClasses:
    """The classes written so far.

    Attributes:
        texts: Their source.
        paths: The parts that are instances of them.
        registrations: Lines of the model's `__init__` that make the parts.
        lines: Lines of their own `__init__`.
    """

    def __init__(self, table: EmitTable, library: LibrarySource, plan: WeightPlan) -> None:
        self._table = table
        self._library = library
        self._plan = plan
        self._names = {"Model", "Scope"}
        self.texts: list[str] = []
        self.paths: set[str] = set()
        self.registrations: list[str] = []
        self.lines: list[str] = []

    def add(self, group: PartGroup) -> tuple[Symbol, ...]:
        """Writes the class of a group; returns the sizes that its `forward` takes last."""
        arguments = _argument_names(group)
        before = set(group.plan.slots)
        emitter = GraphEmitter(
            self._table, WeightSource(group.plan), self._library, arguments, is_part=True
        )
        values = emitter.emit_part(group.parts[0], group.results)
        if len(values) == 1:
            values = [emitter.lines.take_last(values[0])]
        emitter.lines.add(f"return {', '.join(values)}")
        lines = registrations(group.plan)
        self.lines += lines
        name = self._class_name(group)
        self.paths.update(part.path for part in group.parts)
        self._register(group, name)
        self._share_constants(group, [p for p in group.plan.slots if p not in before])
        first, last = group.parts[0].path, group.parts[-1].path.rpartition(".")[2]
        self.texts.append(
            class_text(
                name,
                f"`{first}` to `{last}`: {len(group.parts)} equal parts.",
                lines,
                _signature(group, arguments, list(emitter.sizes.asked.values())),
                emitter.lines.render(2, is_short=True),
            )
        )
        return tuple(emitter.sizes.asked)

    def _class_name(self, group: PartGroup) -> str:
        words = [word for word in group.path.split(".") if not word.isdigit()] or ["part"]
        base = identifier(words[-1]).replace("_", " ").title().replace(" ", "")
        base = base.removesuffix("s") or "Part"
        name, number = base, 1
        while name in self._names or name in RESERVED:
            number += 1
            name = f"{base}{number}"
        self._names.add(name)
        return name

    def _register(self, group: PartGroup, name: str) -> None:
        numbers = [int(part.path.rpartition(".")[2]) for part in group.parts]
        path = f"{group.path}." if group.path else ""
        if numbers == list(range(len(numbers))):
            self.registrations += [
                f"for i in range({len(numbers)}):",
                f'    part(self, f"{path}{{i}}", {name}())',
            ]
        else:
            self.registrations += [
                f"part(self, {quoted(f'{path}{number}')}, {name}())" for number in numbers
            ]

    def _share_constants(self, group: PartGroup, paths: Sequence[str]) -> None:
        """Registers in the model's plan the constants that emission added to the parts."""
        for path in paths:
            slot = group.plan.slots[path]
            if is_inline(slot):
                continue
            for part in group.parts:
                whole = f"{part.path}.{path}"
                self._plan.slots[whole] = Slot(whole, slot.tree, slot.role, slot.weight)


def _argument_names(group: PartGroup) -> list[str]:
    handed = [i for i in range(len(group.parts[0].arguments)) if group.is_handed_on(i)]
    names: list[str] = []
    for idx, value in enumerate(group.parts[0].arguments):
        hint = "x" if handed == [idx] else variable_hint(value)
        name, number = hint, 0
        while name in names or name in RESERVED:
            number += 1
            name = f"{hint}_{number}"
        names.append(name)
    return names


def _signature(group: PartGroup, arguments: Sequence[str], sizes: Sequence[str]) -> str:
    typed = [
        f"{name}: Tensor" if isinstance(value.type, TensorType) else name
        for name, value in zip(arguments, group.parts[0].arguments, strict=True)
    ]
    typed += [f"{name}: int" for name in sizes]
    result = group.parts[0].result(group.results[0]) if len(group.results) == 1 else None
    is_tensor = result is not None and isinstance(result.type, TensorType)
    return f"def forward({', '.join(['self', *typed])}){' -> Tensor' if is_tensor else ''}:"


def class_text(
    name: str, docstring: str, registered: Sequence[str], signature: str, body: str
) -> str:
    """Returns the source of a class.

    Args:
        name: Its name.
        docstring: One line, or nothing.
        registered: Lines of `__init__`.
        signature: The head of `forward`.
        body: Its lines, indented.
    """
    init = "\n".join(f"        {line}" for line in ["super().__init__()", *registered])
    doc = f'    """{plain_text(docstring)}"""\n\n' if docstring else ""
    head = f"class {name}(Scope):\n{doc}    def __init__(self) -> None:\n{init}"
    return f"{head}\n\n    {signature}\n{body}"
