"""`regraft inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import Assignments, output_options
from regraft.cli.show import human_bytes, out_console, print_json, table, warn


@click.command("inspect", epilog="Example: regraft inspect model.onnx --dims batch=1,seq=128")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--dims", type=Assignments(), default=dict, help="Sizes to report for.")
@output_options
def command(
    source: Path, dims: dict[str, int], as_json: bool, quiet: bool, verbose: int
) -> None:
    """Show parameters, bytes, FLOPs, peak activation and operators of SOURCE."""
    from regraft.inspection import inspect_module  # noqa: PLC0415
    from regraft.sources import open_source  # noqa: PLC0415

    opened = open_source(source)
    report = inspect_module(opened.module, dims)
    warn(opened.module.warnings, quiet=quiet)
    if as_json:
        print_json(report)
        return
    console = out_console()
    rows: list[tuple[str, Any]] = [
        ("parameters", f"{report['parameters']:,}"),
        ("weights", human_bytes(report["bytes"])),
        ("MACs", report["macs"]),
        ("FLOPs", report["flops"]),
        ("peak activation", report["peak_activation_bytes"]),
        ("opaque operators", ", ".join(report["opaque"]) or "none"),
    ]
    console.print(table(opened.label, ("", "value"), rows))
    types = [("in", n, t) for n, t in report["inputs"].items()]
    types += [("out", n, t) for n, t in report["outputs"].items()]
    console.print(table("interface", ("", "name:", "type:"), types))
    operators = list(report["operators"].items())
    shown = operators if verbose else operators[:20]
    console.print(table("operators", ("operator", "nodes"), shown))
    if len(operators) > len(shown):
        console.print(f"and {len(operators) - len(shown)} more (-v shows all)")
