"""Writes the pages that are made from code and data: all of `PAGES`.

The latency table of the README is made from committed results in the same way.
`python -m docs.generate` writes all of them; a test fails when one is not current.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.fuse_page import coverage_page
from docs.latency import latency_table
from docs.methods import methods_page
from regraft.cli.passes_cmd import options_of_class
from regraft.ir import errors
from regraft.ir.errors import RegraftError
from regraft.ir.ops import FAMILIES
from regraft.ir.opspec import REQUIRED, Attr, AttrKind, OpSpec, Trait
from regraft.passes import PASSES

FOLDER = Path(__file__).parent
_NOTE = "<!-- made by `python -m docs.generate`; do not edit -->"


def operators_page() -> str:
    """Returns one table row per operator, in order of families."""
    rows = [_operator(spec) for family in FAMILIES for spec in family]
    return "\n".join(
        [
            "# Operators",
            "",
            _NOTE,
            "",
            f"{len(rows)} operators, in the order of their families in `ir/ops/`. The source says",
            "where the semantics are defined. An operand in brackets is optional, one with a star",
            "takes any number of values, and one followed by `=` may be given as the attribute of",
            "the same name instead. The axis rule says how the axes of operands and results",
            "correspond (`ir/axes.py` explains the notation); `by node` means that it depends on",
            "the attributes, and a dash that every axis is pinned or, for data movement, traced.",
            "",
            "| operator | source | operands | attributes | results | axis rule | traits |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _operator(spec: OpSpec) -> str:
    operands = []
    for operand in spec.operands:
        name = operand.name + ("*" if operand.variadic else "") + ("=" if operand.either else "")
        operands.append(f"[{name}]" if operand.optional else name)
    own = [attr for attr in spec.attrs if attr.name not in spec.operand_idx]
    traits = [t.name.lower() for t in Trait if t in spec.traits and t is not Trait.PURE and t.name]
    if Trait.PURE not in spec.traits:
        traits.append("not pure")
    axes = spec.axes if isinstance(spec.axes, str) else "by node" if spec.axes else "-"
    cells = (
        f"`{spec.name}`",
        spec.source,
        ", ".join(operands) or "-",
        ", ".join(map(_attribute, own)) or "-",
        ", ".join(spec.results),
        f"`{axes}`" if isinstance(spec.axes, str) else axes,
        ", ".join(traits).replace("_", " ") or "-",
    )
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Returns a text that does not end its cell of a table."""
    return text.replace("|", chr(92) + "|")


def _attribute(attr: Attr) -> str:
    if attr.default is REQUIRED:
        return attr.name
    if attr.kind is AttrKind.FLOAT and isinstance(attr.default, float):
        return f"{attr.name}={attr.default:.6g}"
    return f"{attr.name}={attr.default}"


def passes_page() -> str:
    """Returns the docstring and options of every pass."""
    parts = ["# Passes", "", _NOTE, ""]
    parts += ["`regraft passes NAME` prints the same. Options are written in kebab-case:"]
    parts += ["`canonicalize{max-fold-bytes=4096}`.", ""]
    for cls in PASSES:
        text, _, _ = (inspect.getdoc(cls) or "").partition("\nArgs:")
        parts += [f"## {cls.name}", "", f"Contract: {cls.contract}.", ""]
        parts += [line.replace("## ", "### ", 1) for line in text.rstrip().splitlines()]
        options = options_of_class(cls)
        if options:
            parts += ["", "| option | type | default | |", "|---|---|---|---|"]
            about = dict(_documented_args(cls))
            parts += [
                f"| `{o['name']}` | {_cell(str(o['type']))} | `{o['default']}` "
                f"| {about.get(o['name'].replace('-', '_'), '')} |"
                for o in options
            ]
        parts.append("")
    return "\n".join(parts)


def _documented_args(cls: type) -> Iterator[tuple[str, str]]:
    """Yields the names and texts of the `Args:` section of a docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("\nArgs:\n")
    name, text = "", ""
    for line in section.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            if name:
                yield name, text
            name, _, text = line.strip().partition(": ")
        elif line.strip():
            text += " " + line.strip()
    if name:
        yield name, text


def errors_page() -> str:
    """Returns the exception tree with each class's cause and fix."""
    tree = (inspect.getdoc(errors) or "").partition("```")[2].partition("```")[0].strip("\n")
    parts = ["# Errors", "", _NOTE, ""]
    parts += ["Everything that a user can cause is a `RegraftError`: a message (what, where, what"]
    parts += ["was expected), a hint, and the exit code of the command line."]
    parts += ["", "```", tree, "```", ""]
    for cls in _tree(RegraftError):
        doc = (inspect.getdoc(cls) or "").partition("\n\nArgs:")[0]
        parts += [f"## {cls.__name__}", "", f"Exit code {cls.exit_code}.", "", doc, ""]
    return "\n".join(parts)


def _tree(cls: type[RegraftError]) -> Iterator[type[RegraftError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


PAGES: dict[str, Callable[[], str]] = {
    "operators.md": operators_page,
    "passes.md": passes_page,
    "errors.md": errors_page,
    "coverage.md": lambda: coverage_page(_NOTE),
    "methods.md": lambda: methods_page(_NOTE),
}
"""File -> what makes it."""

README = FOLDER.parent / "README.md"
_LATENCY = re.compile(
    r"(?<=<!-- latency: made by `python -m docs.generate` -->\n\n).*?"
    r"(?=\n\n<!-- end of latency -->)",
    re.DOTALL,
)


def with_latency(readme: str) -> str:
    """Returns the text of the README with the current table between its marks.

    Raises:
        ValueError: When the marks are missing.
    """
    text, count = _LATENCY.subn(lambda old: latency_table(), readme)
    if count != 1:
        raise ValueError(f"the README marks {count} places for the latency table")
    return text


def main() -> None:
    """Writes every page."""
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(f"wrote docs/{name}")
    README.write_text(with_latency(README.read_text(encoding="utf-8")), encoding="utf-8")
    print("wrote the latency table of README.md")


if __name__ == "__main__":
    main()
