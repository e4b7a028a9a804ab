"""Names in generated source: identifiers, variables that are free again, readable hints."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from pathlib import Path

from regraft.ir.constants import literal, weight
from regraft.ir.graph import Value

_NO_WORD = re.compile(r"\W+", re.ASCII)
_AUTOMATIC = re.compile(r"(_output)?_\d+$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_RULE_SUFFIX = re.compile(r"\.(\d+|[a-z-]+)$")
_MAX_HINT = 24

_LIBRARY = Path(__file__).parent / "library"
_DEFINITION = re.compile(r"^(?:def|class) (\w+)", re.MULTILINE)


def _library_names() -> frozenset[str]:
    """Returns what library modules define: a variable of that name would hide the function."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(_LIBRARY.glob("*.py")))
    return frozenset(name for text in texts for name in _DEFINITION.findall(text))


RESERVED = _library_names() | frozenset({
    "self", "torch", "F", "nn", "math", "Tensor", "annotations", "bool", "float", "int", "len",
    "list", "max", "min", "range", "reversed", "slice", "sum", "tuple", "zip", "enumerate", "abs",
    "round", "isinstance", "sys", "Any", "Model", "kernels",
})  # fmt: skip
"""What the generated code uses under its own name."""


def identifier(text: str) -> str:
    """Returns the nearest Python identifier (`onnx::MatMul_12` -> `onnx_MatMul_12`)."""
    name = _NO_WORD.sub("_", text).strip("_") or "value"
    if name[0].isdigit():
        name = f"_{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


def plain_text(text: str) -> str:
    """Returns what a model calls something as a comment or a docstring may hold it.

    One line without double quotes or backslashes: a name ends neither, so that none becomes code.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(line.split()).replace("\\", "/").replace('"', "'")


def is_identifier(text: str) -> bool:
    """Returns whether an attribute can be written `.text`."""
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text)


def variable_hint(value: Value) -> str:
    """Returns a short lower-case name for a value: what its source called it, without counters."""
    fallback = "value" if value.producer is None else value.producer.op.name
    if not value.name:
        return identifier(fallback)
    text = value.name
    if "/" in text:  # a path of scopes, the operator that it was last
        text = text.rstrip("/").rpartition("/")[2]
        if text[:1].isupper():
            return identifier(fallback.rstrip("_"))
    if "::" in text:  # numbered by an exporter
        return identifier(fallback)
    if value.producer is not None and value.producer.op in (weight, literal) and "." in text:
        return _hint_of_tensor(text)
    text = _RULE_SUFFIX.sub("", text)
    text = _AUTOMATIC.sub("", _AUTOMATIC.sub("", text))
    text = identifier(_CAMEL.sub("_", text).rpartition(".")[2]).lower().lstrip("_")
    if not text or text.isdigit() or len(text) > _MAX_HINT:
        return identifier(fallback)
    return identifier(text)


def _hint_of_tensor(name: str) -> str:
    """Returns what a stored tensor is of which part: `ln_1_weight` of `h.0.ln_1.weight`."""
    parts = [identifier(_CAMEL.sub("_", part)).lower() for part in name.split(".")]
    words = [part.strip("_") for part in parts if not part.strip("_").isdigit()][-2:]
    return next(
        (text for text in ("_".join(words), *words[-1:]) if 0 < len(text) <= _MAX_HINT), "weight"
    )


class Variables:
    """The names of local variables; a name is free again when its last holder is dead."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._holders: dict[str, int] = dict.fromkeys((*RESERVED, *reserved), 1)
        self._used: set[str] = set(self._holders)

    def take(self, hint: str) -> str:
        """Returns a free name that starts with `hint` and holds it."""
        return self._take(hint, self._holders)

    def take_forever(self, hint: str) -> str:
        """Returns a name that no variable had before and none gets later."""
        return self._take(hint, self._used)

    def _take(self, hint: str, taken: Iterable[str]) -> str:
        name, number = hint, 0
        while name in taken or keyword.iskeyword(name):
            number += 1
            name = f"{hint}_{number}"
        self._holders[name] = 1
        self._used.add(name)
        return name

    def reserve(self, name: str) -> None:
        """Keeps a name from being taken."""
        self._holders.setdefault(name, 1)
        self._used.add(name)

    def hold(self, name: str) -> None:
        """Adds a holder: another value that is the same variable."""
        self._holders[name] += 1

    def num_holders(self, name: str) -> int:
        """Returns how many values the variable holds."""
        return self._holders.get(name, 0)

    def release(self, name: str) -> bool:
        """Removes a holder; returns whether the name is free now."""
        self._holders[name] -= 1
        if self._holders[name]:
            return False
        del self._holders[name]
        return True

    def is_variable(self, text: str) -> bool:
        """Returns whether an expression is a variable that is held."""
        return text in self._holders and text not in RESERVED
