"""`regraft inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import Assignments, load_extensions, output_options, source_options
from regraft.cli.show import out_console, print_json, print_table, warn
from regraft.cli.verb import Verb
from regraft.units import human_bytes, human_count

_SHOWN_OPERATORS = 20
_SHOWN_COUPLINGS = 20


@click.command(
    "inspect", cls=Verb, epilog="Example: regraft inspect model.onnx --dims batch=1,seq=128"
)
@click.argument("source")
@click.option("--dims", type=Assignments(), default=dict, help="Sizes to report for.")
@click.option(
    "--couplings", is_flag=True, help="Show which axes prune together, and what is pinned and why."
)
@click.option("--depth", is_flag=True, help="Show what every layer adds, and what is lost without.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Samples of --depth, .npz files, texts or images; default: generated ones.",
)
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with the graph."
)
@click.option("--force", is_flag=True, help="Replace an existing page.")
@source_options
@output_options
def command(
    source: str,
    dims: dict[str, int],
    couplings: bool,
    depth: bool,
    calibrate: Path | None,
    html: Path | None,
    force: bool,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Show parameters, bytes, FLOPs, peak activation and operators of SOURCE."""
    from regraft.calibration import read_calibration
    from regraft.inspection import describe_couplings, describe_depth, inspect_module
    from regraft.output import check_destination
    from regraft.sources import open_source

    if html is not None:
        check_destination(html, force=force)
    opened = open_source(source, load_extensions(plugins, trust_remote_code))
    report = inspect_module(opened.module, dims)
    if couplings:
        report["couplings"] = describe_couplings(opened.module)
    if depth:
        samples = [] if calibrate is None else read_calibration(calibrate, opened)
        report["depth"] = describe_depth(opened.module, samples, dims)
    if html is not None:
        _write_page(html, opened.label, report, opened.module, force=force)
    warn(opened.module.warnings, quiet=quiet)
    if as_json:
        print_json(report)
        return
    console = out_console()
    sizes = ", ".join(f"{name}={size}" for name, size in report["dims"].items())
    unknown = sum(report["flops_unknown"].values())
    rows: list[tuple[str, Any]] = [
        ("parameters", f"{report['parameters']:,}"),
        ("weights", human_bytes(report["bytes"])),
        ("MACs", human_count(report["macs"])),
        ("FLOPs", human_count(report["flops"])),
        ("nodes of unknown cost", unknown),
        ("peak activation", human_bytes(report["peak_activation_bytes"])),
        ("at sizes", sizes or "fixed"),
        ("opaque operators", ", ".join(report["opaque"]) or "none"),
    ]
    print_table(console, opened.label, ("", "value"), rows)
    types = [("in", n, t) for n, t in report["inputs"].items()]
    types += [("out", n, t) for n, t in report["outputs"].items()]
    print_table(console, "interface", ("", "name:", "type:"), types)
    operators = list(report["operators"].items())
    shown = operators if verbose else operators[:_SHOWN_OPERATORS]
    print_table(console, "operators", ("operator", "nodes"), shown)
    if len(operators) > len(shown):
        console.print(f"and {len(operators) - len(shown)} more (-v shows all)")
    if couplings:
        _show_couplings(console, report["couplings"], all_rows=bool(verbose))
    if depth:
        _show_depth(console, report["depth"])


def _show_couplings(console: Any, report: Any, *, all_rows: bool) -> None:
    count = None if all_rows else _SHOWN_COUPLINGS
    rows = [
        (item["name"], item["size"], item["blocks"], item["alike"], _listed(item["weights"]))
        for item in report["groups"]
    ]
    title = "coupled groups: positions that go together"
    columns = ("group", "positions", "blocks", "alike", "weights:")
    print_table(console, title, columns, rows[:count])
    pins = [(_listed(item["weights"]), item["size"], item["why"]) for item in report["pinned"]]
    print_table(console, "pinned", ("weights:", "positions", "why:"), pins[:count])
    hidden = max(len(rows) - len(rows[:count]), 0) + max(len(pins) - len(pins[:count]), 0)
    if hidden:
        console.print(f"and {hidden} more (-v shows all)")


def _show_depth(console: Any, report: Any) -> None:
    rows = []
    for layer in report["layers"]:
        without = layer["outputs_without"]
        rows.append((
            layer["number"], layer["name"], f"{layer['parameters']:,}",
            f"{layer['influence']:.3f}",
            " ".join(f"{each['share']:.2f}" for each in layer["branches"]),
            " ".join(f"{each['cosine']:.2f}" for each in layer["branches"]),
            "stays" if without is None else f"{without:.3f}",
        ))  # fmt: skip
    columns = ("layer", "result:", "parameters", "turned", "added", "cosine", "lost without")
    print_table(console, f"layers, on {report['samples']} samples", columns, rows)


def _listed(weights: Any) -> str:
    first = f"{weights[0]['name']} axis {weights[0]['axis']}"
    return first if len(weights) == 1 else f"{first} and {len(weights) - 1} more"


def _write_page(html: Path, label: str, report: Any, module: Any, *, force: bool) -> None:
    from regraft.output import staged
    from regraft.report_html import inspect_page, view_of

    page = inspect_page(label, report, view_of(module))
    with staged(html, force=force) as temp:
        (temp / html.name).write_text(page, encoding="utf-8")
