"""Graphs of one input and one output, spelled in a line per operator."""

from __future__ import annotations

import re

from regraft.ir.module import Module
from regraft.ir.text import parse_module

_NUMBER = re.compile(r"(?<![\w.%\[=-])(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?=[,)])")


def spelled(
    body: str,
    shape: str = "B, S, 16",
    dtype: str = "f32",
    weights: dict[str, str] | None = None,
    inputs: str | None = None,
) -> Module:
    """Returns the module of a body whose last line makes `%y`.

    Args:
        body: Lines such as `%a = mul(%x, 0.5)`; a number is a scalar of the element type.
        shape: Shape of `%x`.
        dtype: Element type of `%x` and of the numbers; a number written `2:f32` has its own.
        weights: Type of every weight, which is random and read as `%name`.
        inputs: The inputs in place of `%x`, such as `%q : f32[B, 4, S, 8], %m : bool[B, S]`.
    """
    lines: list[str] = []
    head = ["symbol B", "symbol S", "symbol T", "symbol H", "symbol W"]
    for name, type_ in (weights or {}).items():
        head.append(f"weight @{name} : {type_} role=param = random({len(head)})")
        lines.append(f"%{name} = weight @{name}")
    count = 0
    for raw in filter(None, map(str.strip, body.strip().splitlines())):
        call, _, attrs = raw.partition(" {")

        def literal(match: re.Match[str]) -> str:
            nonlocal count
            count += 1
            lines.append(f"%n{count} = literal {dtype}[] {match[1]}")
            return f"%n{count}"

        line = call if " literal " in call else _NUMBER.sub(literal, call)
        lines.append(line + (" {" + attrs if attrs else ""))
    inner = "\n  ".join(lines)
    text = "\n".join(head)
    given = f"%x : {dtype}[{shape}]" if inputs is None else inputs
    return parse_module(f"{text}\ngraph({given}) {{\n  {inner}\n  return %y\n}}\n")
