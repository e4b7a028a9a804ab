"""`regraft passes`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from regraft.cli.show import out_console, print_json, table


@click.command("passes", epilog="Example: regraft passes canonicalize")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str | None, as_json: bool) -> None:
    """List all passes, or document the pass NAME with its options."""
    from regraft.ir.errors import UsageError  # noqa: PLC0415
    from regraft.passes import PASSES  # noqa: PLC0415
    from regraft.passes.pipeline import suggest  # noqa: PLC0415

    by_name = {cls.name: cls for cls in PASSES}
    if name is None:
        rows = [(cls.name, str(cls.contract), _first_line(cls)) for cls in PASSES]
        if as_json:
            print_json([{"name": n, "contract": c, "summary": s} for n, c, s in rows])
        else:
            out_console().print(table("passes", ("name", "contract:", "what it does:"), rows))
        return
    cls = by_name.get(name.replace("_", "-"))
    if cls is None:
        raise UsageError(f"unknown pass `{name}`", hint=suggest(name, by_name))
    options = _options(cls)
    if as_json:
        doc = inspect.getdoc(cls) or ""
        print_json(
            {"name": cls.name, "contract": str(cls.contract), "doc": doc, "options": options}
        )
        return
    click.echo(f"{cls.name} ({cls.contract})\n")
    click.echo(inspect.getdoc(cls) or "")
    if options:
        rows2 = [(o["name"], o["type"], o["default"]) for o in options]
        out_console().print(table("options", ("option", "type:", "default:"), rows2))


def _first_line(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").split("\n", 1)[0]


def _options(cls: type[Any]) -> list[dict[str, str]]:
    found = []
    for f in dataclasses.fields(cls):
        if f.init:
            default = "required" if f.default is dataclasses.MISSING else repr(f.default)
            if f.default_factory is not dataclasses.MISSING:
                default = repr(f.default_factory())
            found.append(
                {"name": f.name.replace("_", "-"), "type": str(f.type), "default": default}
            )
    return found
