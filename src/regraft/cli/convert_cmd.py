"""`regraft convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import (
    Assignments,
    Memory,
    load_samples,
    output_options,
    plugin_options,
    sample_options,
    tolerance_options,
)
from regraft.cli.show import human_bytes, out_console, print_json, progress, table, warn


@click.command("convert", epilog="Example: regraft convert model.onnx -o out --target ort-cpu")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="A folder, or a file name.")
@click.option("--target", default="ort-cpu", show_default=True, help="onnx, ort-cpu or ort-cuda.")
@plugin_options
@click.option("--opset", type=int, help="Opset to write, 13 to 26; default: the source's.")
@click.option("--freeze", type=Assignments(), default=dict, help="Fix sizes: batch=1.")
@click.option(
    "--check/--no-check", "check", default=True, help="Compare the result with the source."
)
@click.option("--check-each", is_flag=True, help="Compare after every pass (also --check=each).")
@sample_options
@tolerance_options
@click.option("--max-memory", type=Memory(), help="Working-memory budget, such as 800MB.")
@click.option("--explain", metavar="RULE", help="Say why a rule did not match.")
@click.option("--dry-run", is_flag=True, help="Do everything except writing the output.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(
    source: Path,
    out: Path | None,
    target: str,
    passes: str | None,
    recipe: Path | None,
    opset: int | None,
    freeze: dict[str, int],
    check: bool,
    check_each: bool,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    rtol: float | None,
    atol: float | None,
    max_memory: int | None,
    explain: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Capture SOURCE, run passes, check the result against the source, and write OUT."""
    from regraft.conversion import ConvertOptions, convert  # noqa: PLC0415
    from regraft.ir.errors import UsageError  # noqa: PLC0415
    from regraft.passes import PASSES  # noqa: PLC0415
    from regraft.passes.manager import CheckMode  # noqa: PLC0415
    from regraft.passes.recipe import read_recipe  # noqa: PLC0415

    if passes is not None and recipe is not None:
        raise UsageError("give --passes or --recipe, not both")
    chosen: Any = passes
    if recipe is not None:
        read = read_recipe(recipe, PASSES)
        chosen = read.passes
        opset = opset if opset is not None else read.settings.get("opset")
        freeze = freeze or read.settings.get("freeze", {})
        context = click.get_current_context()
        if context.get_parameter_source("target") is click.core.ParameterSource.DEFAULT:
            target = read.settings.get("target", target)
    mode = CheckMode.EACH if check_each else CheckMode.MODULE if check else CheckMode.OFF
    options = ConvertOptions(
        target=target, passes=chosen, opset=opset, freeze=freeze, dims=dims,
        samples=load_samples(inputs), check=mode, rtol=rtol, atol=atol,
        max_memory_bytes=max_memory, seed=seed, force=force, dry_run=dry_run, explain=explain,
    )  # fmt: skip
    with progress(enabled=not quiet and not as_json) as say:
        result = convert(source, out, options, progress=say)
    warn(result.report["warnings"], quiet=quiet)
    if explain is not None:
        for line in result.explanations or (f"rule `{explain}` had no near miss",):
            click.echo(line, err=True)
    if as_json:
        print_json({"out": None if result.out is None else str(result.out), **result.report})
        return
    _print_table(result.report, result.out, verbose)


def _print_table(report: Any, out: Path | None, verbose: int) -> None:
    console = out_console()
    nodes, size, check = report["nodes"], report["bytes"], report["check"]
    rows: list[tuple[Any, ...]] = [
        ("nodes", nodes["before"], nodes["after"]),
        ("size", human_bytes(size["before"]), human_bytes(size["after"])),
    ]
    before, after = report["operators"]["before"], report["operators"]["after"]
    names = sorted({*before, *after}, key=lambda n: (-before.get(n, 0), n))
    changed = [n for n in names if before.get(n, 0) != after.get(n, 0)]
    shown = names if verbose else changed[:12]
    rows += [(f"  {n}", before.get(n, 0), after.get(n, 0)) for n in shown]
    console.print(table(str(report["source"]["path"]), ("", "before", "after"), rows))
    passes = [
        (p["name"], "yes" if p["changed"] else "no", p["contract"], f"{p['seconds']:.2f}")
        for p in report["passes"]
    ]
    console.print(table("passes", ("pass", "changed:", "contract:", "seconds"), passes))
    console.print(f"checked: {check['verified']}{_check_detail(check)}")
    console.print(f"written: {out}" if out is not None else "written: nothing (dry run)")


def _check_detail(check: Any) -> str:
    if not check["outputs"]:
        return ""
    worst = max(check["outputs"].values(), key=lambda o: o["max_rel"])
    return (
        f", {check['samples']} samples, {len(check['bindings'])} sizes, "
        f"largest difference {worst['max_abs']:.2g} (allowed {worst['allowed']:.2g})"
    )
