"""The weight table of the text form, in both directions.

```
source @w : f32[768, 3072] = file("model.data", 4096)
weight @w : f32[768, 512] role=param = slice(@w, axis=1, start=0, stop=512)
weight @b : f32[512] role=param = splat 0
weight @e : f32[512] role=param made_from=[@b] = file("model.data", 0)
weight @r : f32[64, 64] = random(1, 0.02)
alias @tied = @w
```

`@name` inside steps means a `source`, never another line's `weight`. `made_from` names the tensors
of the checkpoint that a tensor was computed from for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regraft.ir.derive import DerivedWeight
from regraft.ir.generated import RandomWeight, SplatWeight
from regraft.ir.graph import Scope
from regraft.ir.steps import STEPS, Source, Step, Tree, children, sources
from regraft.ir.steps import Literal as LiteralStep
from regraft.ir.text.arrays import (
    print_array,
    print_elements,
    print_float,
    scan_elements,
    scan_item,
)
from regraft.ir.text.lexer import Scanner, print_name, quote
from regraft.ir.text.types import DTYPES, TypeScanner
from regraft.ir.text.values import print_value, scan_array_of, scan_value
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, MappedWeight, Role, Weight, WeightStore

WeightForm = Literal["auto", "inline", "names"]
"""How tensors print. `auto`: small ones inline, files by reference, large ones by name;
`inline`: all elements; `names`: none."""

AUTO_BYTES = 4096
_STEP_OF = {step.__name__.lower(): step for step in STEPS}
_OPERANDS = frozenset(("x", "xs", "a", "b", "scale", "zero"))


def print_weights(store: WeightStore, form: WeightForm, base: Path | None) -> list[str]:
    """Returns the lines of the weight table.

    Args:
        store: The weights.
        form: How tensors print.
        base: Folder to which file names are relative; None prints them as they are.
    """
    names: dict[Source, str] = {}
    lines: list[str] = []
    if form != "names":
        for name in store:
            weight = store[name]
            if isinstance(weight, DerivedWeight):
                for source in sources(weight.tree):
                    if source not in names:
                        names[source] = _unique(source.name, set(names.values()))
    for source, name in names.items():
        lines.append(f"source {_line(name, source.weight, '', form, base, names)}")
    for name in store:
        role = store.role(name)
        suffix = "" if role is Role.CONST else f" role={role.value}"
        lines.append(f"weight {_line(name, store[name], suffix, form, base, names)}")
    lines += [
        f"alias {print_name('@', alias)} = {print_name('@', target)}"
        for alias, target in store.aliases.items()
    ]
    return lines


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 1
    while unique in taken:
        unique, number = f"{name}.{number}", number + 1
    return unique


def _line(
    name: str,
    weight: Weight,
    suffix: str,
    form: WeightForm,
    base: Path | None,
    names: dict[Source, str],
) -> str:
    head = f"{print_name('@', name)} : {TensorType(weight.dtype, weight.shape)}{suffix}"
    if isinstance(weight, ArrayWeight | MappedWeight) and weight.made_from:
        head += f" made_from=[{', '.join(print_name('@', each) for each in weight.made_from)}]"
    tensor = None if form == "names" else _print_tensor(weight, form, base, names)
    return head if tensor is None else f"{head} = {tensor}"


def _print_tensor(
    weight: Weight, form: WeightForm, base: Path | None, names: dict[Source, str]
) -> str | None:
    match weight:
        case SplatWeight():
            return f"splat {print_elements(weight.item)}"
        case RandomWeight(seed, _, _, scale):
            return f"random({seed})" if scale == 1.0 else f"random({seed}, {print_float(scale)})"
        case DerivedWeight():
            return _print_tree(weight.tree, names)
        case MappedWeight(path, offset) if form == "auto":
            path = path.relative_to(base) if base is not None else path
            return f"file({quote(path.as_posix())}, {offset})"
        case _ if form == "inline" or weight.nbytes <= AUTO_BYTES:
            return print_elements(np.asarray(weight.numpy()))
        case _:
            return None


def _print_tree(tree: Tree, names: dict[Source, str]) -> str:
    if isinstance(tree, Source):
        return print_name("@", names[tree])
    if isinstance(tree, LiteralStep):
        return print_array(tree.numpy())
    parts = [_print_tree(child, names) for child in children(tree)]
    for item in fields(tree):
        value = getattr(tree, item.name)
        if item.name not in _OPERANDS and value != item.default:
            parts.append(f"{item.name}={print_value(value)}")
    return f"{type(tree).__name__.lower()}({', '.join(parts)})"


@dataclass(slots=True)
class WeightParser:
    """Reads weight tables into a scope.

    Attributes:
        scope: Filled with weights and aliases.
        types: Reader of types.
        known: Tensors for lines that only name them.
        base: Folder to which file names are relative.
        sources: Sources by name in this text.
    """

    scope: Scope
    types: TypeScanner
    known: WeightStore | None
    base: Path | None
    sources: dict[str, Source] = field(default_factory=dict)

    def line(self, s: Scanner, word: str) -> None:
        """Consumes the rest of a `source`, `weight` or `alias` line.

        Raises:
            ParseError: When the line is malformed or the tensor cannot be found.
        """
        start = s.pos
        name = s.name("@", "a weight")
        store = self.scope.weights
        if word == "alias":
            s.expect("=")
            target_at = s.pos
            target = s.name("@", "a weight")
            if target not in store:
                raise s.error(f"no weight `{target}` stands above", at=target_at)
            store.aliases[name] = target
            return
        if name in (self.sources if word == "source" else store):
            raise s.error(f"{word} `{name}` is declared twice", at=start)
        dtype, shape = self._type(s)
        role = Role.CONST
        if s.take("role="):
            role_at, text = s.pos, s.expect_word("a role")
            if text not in {item.value for item in Role}:
                raise s.error(f"`{text}` is no role: param, buffer or const", at=role_at)
            role = Role(text)
        made_from = _made_from(s) if s.take("made_from=") else ()
        held = s.take("=")
        weight = self._tensor(s, dtype, shape) if held else self._known(s, word, name, start)
        if made_from and isinstance(weight, ArrayWeight | MappedWeight):
            weight = replace(weight, made_from=made_from)
        if (weight.dtype, weight.shape) != (dtype, shape):
            found = TensorType(weight.dtype, weight.shape)
            expected = TensorType(dtype, shape)
            raise s.error(f"weight `{name}` is {found}, declared {expected}", at=start)
        if word == "source":
            self.sources[name] = Source(name, weight)
        else:
            store.add(name, weight, role)

    def _type(self, s: Scanner) -> tuple[DType, tuple[int, ...]]:
        s.expect(":", "and the type of the weight")
        start = s.pos
        type_ = self.types.type(s)
        if isinstance(type_, TensorType) and type_.is_static and type_.dtype is not None:
            return type_.dtype, tuple(int(str(dim)) for dim in type_.shape or ())
        raise s.error(f"a weight needs an element type and integer sizes, not {type_}", at=start)

    def _known(self, s: Scanner, word: str, name: str, at: int) -> Weight:
        store = self.known
        if store is not None and word == "source":
            trees = (w.tree for w in map(store.__getitem__, store) if isinstance(w, DerivedWeight))
            for tree in trees:
                for source in sources(tree):
                    if source.name == name:
                        return source.weight
        if store is None or name not in store:
            raise s.error(
                f"the text does not hold the elements of {word} `{name}`",
                at=at,
                hint="pass the module's weights to the parser, or print them inline",
            )
        return store[name]

    def _tensor(self, s: Scanner, dtype: DType, shape: tuple[int, ...]) -> Weight:
        word = s.peek_word()
        if word == "splat":
            s.word()
            return SplatWeight(scan_item(s, dtype), shape)
        if word == "random":
            s.word()
            s.expect("(")
            seed = s.integer("a seed")
            scale: int | float = 1.0
            if s.take(","):
                start, found = s.pos, scan_value(s, self.types)
                if not isinstance(found, int | float):
                    raise s.error("the scale of random elements is a number", at=start)
                scale = found
            s.expect(")")
            return RandomWeight(seed, dtype, shape, float(scale))
        if word == "file":
            return self._file(s, dtype, shape)
        if not s.peek("@") and word not in _STEP_OF and word not in DTYPES:
            return ArrayWeight(scan_elements(s, dtype, shape))
        start = s.pos
        tree = self._tree(s)
        try:
            return DerivedWeight(tree)
        except ValueError as error:
            raise s.error(str(error), at=start) from error

    def _file(self, s: Scanner, dtype: DType, shape: tuple[int, ...]) -> Weight:
        s.word()
        s.expect("(")
        start = s.pos
        path = Path(s.string())
        s.expect(",")
        offset = s.integer("a byte offset")
        expected = s.string() if s.take(",") else None
        s.expect(")")
        weight = MappedWeight(path if self.base is None else self.base / path, offset, dtype, shape)
        if expected is not None:
            raw = np.ascontiguousarray(weight.numpy())
            if hashlib.sha256(raw.tobytes()).hexdigest() != expected:
                raise s.error(f"`{path}`: the bytes do not have the recorded hash", at=start)
        return weight

    def _tree(self, s: Scanner) -> Tree:
        start = s.pos
        if s.peek("@"):
            name = s.name("@", "a source")
            if name not in self.sources:
                raise s.error(f"no source `{name}` stands above", at=start)
            return self.sources[name]
        step = _STEP_OF.get(s.peek_word())
        if step is None:
            type_ = self.types.type(s)
            return LiteralStep.of(scan_array_of(s, type_, start))
        s.word()
        s.expect("(")
        operands: list[Tree] = []
        options: dict[str, Any] = {}
        allowed = {item.name for item in fields(step)} - _OPERANDS
        while not s.take(")"):
            if operands or options:
                s.expect(",")
            word = s.peek_word()
            if word in allowed:
                s.word()
                s.expect("=")
                options[word] = scan_value(s, self.types)
            else:
                operands.append(self._tree(s))
        return _make_step(step, operands, options, lambda m: s.error(m, at=start))


def _made_from(s: Scanner) -> tuple[str, ...]:
    names: list[str] = []
    s.expect("[")
    while not s.take("]"):
        if names:
            s.expect(",")
        names.append(s.name("@", "a tensor of the checkpoint"))
    return tuple(names)


def _make_step(
    step: type[Step],
    operands: list[Tree],
    options: dict[str, Any],
    error: Callable[[str], Exception],
) -> Step:
    slots = [item for item in fields(step) if item.name in _OPERANDS]
    given: dict[str, Any] = dict(options)
    if slots[0].name == "xs":
        given["xs"] = tuple(operands)
    else:
        for slot, operand in zip(slots, operands, strict=False):
            given[slot.name] = operand
        if len(operands) > len(slots):
            raise error(f"{step.__name__.lower()} takes {len(slots)} operands")
        if slots[-1].name == "zero":
            given.setdefault("zero", None)
    missing = [f.name for f in fields(step) if f.name not in given and f.default is MISSING]
    if missing or given.get("xs") == ():
        raise error(f"{step.__name__.lower()}: `{(missing or ['xs'])[0]}` is missing")
    return step(**given)
