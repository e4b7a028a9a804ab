"""`regraft passes`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from regraft.cli.options import load_extensions, output_options, source_options
from regraft.cli.show import out_console, print_json, print_table
from regraft.cli.verb import Verb


@click.command("passes", cls=Verb, epilog="Example: regraft passes canonicalize")
@click.argument("name", required=False)
@source_options
@output_options
def command(
    name: str | None,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """List all passes, or document the pass NAME with its options."""
    from regraft.ir.errors import UsageError
    from regraft.passes.pipeline import suggest

    passes = load_extensions(plugins).passes
    by_name = {cls.name: cls for cls in passes}
    if name is None:
        rows = [(cls.name, str(cls.contract), summary(cls)) for cls in passes]
        if as_json:
            print_json([{"name": n, "contract": c, "summary": s} for n, c, s in rows])
        else:
            print_table(out_console(), "passes", ("name", "contract:", "what it does:"), rows)
        return
    cls = by_name.get(name.replace("_", "-"))
    if cls is None:
        raise UsageError(f"unknown pass `{name}`", hint=suggest(name, by_name))
    options = options_of_class(cls)
    doc = inspect.getdoc(cls) or ""
    if as_json:
        contract = str(cls.contract)
        print_json({"name": cls.name, "contract": contract, "doc": doc, "options": options})
        return
    click.echo(f"{cls.name} ({cls.contract})\n")
    click.echo(doc)
    if options:
        rows2 = [(o["name"], o["type"], o["default"]) for o in options]
        print_table(out_console(), "options", ("option", "type:", "default:"), rows2)


def summary(cls: type[Any]) -> str:
    """Returns the first line of a pass's docstring."""
    return (inspect.getdoc(cls) or "").split("\n", 1)[0]


def options_of_class(cls: type[Any]) -> list[dict[str, str]]:
    """Returns name, type and default of a pass's options."""
    found = []
    for item in dataclasses.fields(cls):
        if item.init:
            default = "required" if item.default is dataclasses.MISSING else repr(item.default)
            if item.default_factory is not dataclasses.MISSING:
                default = repr(item.default_factory())
            name = item.name.replace("_", "-")
            found.append({"name": name, "type": str(item.type), "default": default})
    return found
