"""`regraft convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import (
    Assignments,
    load_extensions,
    load_metric,
    memory_option,
    output_options,
    pipeline_options,
    quality_options,
    sample_options,
    show_explanations,
    source_options,
    tolerance_options,
)
from regraft.cli.show import (
    out_console,
    plural,
    print_json,
    print_table,
    progress,
    warn,
)
from regraft.cli.verb import Verb, check_option
from regraft.units import human_bytes

_WORST = 5
"""Layers that are shown without -v; all are in the report."""

_TOLD = (
    "achieved",
    "error-pruned",
    "error-repaired",
    "additivity-r2",
    "numbers-before",
    "numbers",
    "sparsity",
    "realized",
    "layers-before",
    "layers",
    "joint-loss",
    "removals",
    "loss-before",
    "loss-after",
    "steps",
    "loss-first",
    "loss-last",
)
"""Figures of lossy passes that are shown without -v: what was asked for, and what it cost."""


@click.command(
    "convert", cls=Verb, epilog="Example: regraft convert model.onnx -o out --target ort-cpu"
)
@click.argument("source")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="A folder, or a file name.")
@click.option("--target", help="onnx, ort-cpu, ort-cuda, torch, hf or triton; default: ort-cpu.")
@pipeline_options
@click.option("--dtype", help="fp32, fp16 or bf16: adds the pass `cast`.")
@click.option("--opset", type=int, help="Opset to write, 13 to 27; default: the source's.")
@click.option("--freeze", type=Assignments(), default=dict, help="Fix sizes: batch=1.")
@quality_options
@click.option("--aot", metavar="ARCHS", help="Compile kernels of a package for sm_90,sm_80,gfx942.")
@check_option("module")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Samples that passes measure on, .npz files, texts or images; default: --inputs.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Of texts of --calibrate and --data; default: tokenizer.json beside SOURCE.",
)
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    help="Texts or samples that `recover` trains on; default: those of --calibrate.",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    help="Folder from which interrupted training resumes.",
)
@sample_options
@tolerance_options
@memory_option
@source_options
@click.option("--bench", is_flag=True, help="Measure the latency of source and result.")
@click.option("--dry-run", is_flag=True, help="Do everything except writing the output.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(
    source: str,
    out: Path | None,
    target: str | None,
    passes: str | None,
    recipe: Path | None,
    explain: str | None,
    dtype: str | None,
    opset: int | None,
    freeze: dict[str, int],
    metric: str | None,
    data: Path | None,
    max_drop: str | None,
    aot: str | None,
    check: str,
    calibrate: Path | None,
    tokenizer: Path | None,
    train: Path | None,
    checkpoints: Path | None,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    rtol: float | None,
    atol: float | None,
    max_memory: int | None,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    bench: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Capture SOURCE, run passes, check the result against the source, and write OUT."""
    from regraft.conversion import convert
    from regraft.conversion_options import ConvertOptions
    from regraft.ir.errors import UsageError
    from regraft.passes.manager import CheckMode
    from regraft.passes.recipe import read_recipe

    if passes is not None and recipe is not None:
        raise UsageError("give --passes or --recipe, not both")
    asked = load_metric(metric, data, max_drop, tokenizer)
    extensions = load_extensions(plugins, trust_remote_code)
    settings: dict[str, Any] = {}
    chosen: Any = passes
    if recipe is not None:
        read = read_recipe(recipe, extensions.passes)
        chosen, settings = read.passes, dict(read.settings)
    given = {
        "target": target, "dtype": dtype, "opset": opset, "freeze": freeze or None,
        "dims": dims or None, "seed": seed if _is_given("seed") else None,
    }  # fmt: skip
    settings |= {name: value for name, value in given.items() if value is not None}
    options = ConvertOptions(
        passes=chosen, inputs=inputs, calibrate=calibrate or (), tokenizer=tokenizer,
        train=train, checkpoints=checkpoints,
        check=CheckMode(check), rtol=rtol, atol=atol,
        max_memory_bytes=max_memory, quality=asked, force=force, dry_run=dry_run,
        extensions=extensions, explain=explain, plugins=plugins, bench=bench,
        aot=() if aot is None else tuple(aot.split(",")), **settings,
    )  # fmt: skip
    with progress(enabled=not quiet and not as_json) as say:
        result = convert(source, out, options, progress=say)
    warn(result.report["warnings"], quiet=quiet)
    show_explanations(explain, result.explanations)
    if as_json:
        print_json({"out": None if result.out is None else str(result.out), **result.report})
        return
    _print_tables(result.report, result.out, verbose)


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _print_tables(report: Any, out: Path | None, verbose: int) -> None:
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
    print_table(console, str(report["source"]["path"]), ("", "before", "after"), rows)
    passes = [
        (p["name"], "yes" if p["changed"] else "no", p["contract"], p["verified"],
         f"{p['seconds']:.2f}")
        for p in report["passes"]
    ]  # fmt: skip
    columns = ("pass", "changed:", "contract:", "verified:", "seconds")
    print_table(console, "passes", columns, passes)
    _print_losses(console, report, verbose)
    if verbose:
        for entry in report["passes"]:
            for name, count in entry["stats"].items():
                console.print(f"{entry['name']}: {name} {count}")
            for skip in entry["skipped"]:
                console.print(f"{entry['name']}: left alone {skip['node']}: {skip['reason']}")
            for place in entry["unproved"]:
                console.print(f"{entry['name']}: not proved {place['node']}: {place['reason']}")
    _print_layers(console, report, verbose)
    console.print(f"checked: {check['verified']}{_check_detail(check)}")
    if "note" in check:
        console.print(f"the check {check['note']}")
    if "quality" in report:
        console.print(f"quality: {_figures(report['quality'])}")
    if "bench" in report:
        first, made = report["bench"]["runs"]
        console.print(
            f"latency: {made['median_ms']:.3f} ms, the source {first['median_ms']:.3f} ms, ratio "
            f"{made['ratio']:.3f} ({made['interval'][0]:.3f} to {made['interval'][1]:.3f})"
        )
    if report.get("page", "").startswith("no"):
        console.print(f"report.html: {report['page']}")
    console.print(f"written: {out}" if out is not None else "written: nothing (dry run)")


def _print_losses(console: Any, report: Any, verbose: int) -> None:
    """Prints what each lossy pass gave away, and for what; or why it did nothing."""
    for entry in report["passes"]:
        if not entry["contract"].startswith("lossy"):
            continue
        if not entry["changed"]:
            left = entry["skipped"]
            why = f"; left alone {left[0]['node']}: {left[0]['reason']}" if left else ""
            more = f" (and {len(left) - 1} more: -v)" if len(left) > 1 and not verbose else ""
            console.print(f"{entry['name']}: nothing changed{why}{more}")
            continue
        told = {name: entry["stats"][name] for name in _TOLD if name in entry["stats"]}
        if told:
            figures = ", ".join(f"{name} {_short(value)}" for name, value in told.items())
            console.print(f"{entry['name']}: {figures}")


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _print_layers(console: Any, report: Any, verbose: int) -> None:
    """Prints what rounding costs the worst layers, and what keeping them costs."""
    layers = [layer for entry in report["passes"] for layer in entry.get("layers", ())]
    if not layers:
        return
    shown = layers if verbose else layers[:_WORST]
    rows = [
        (layer["name"], layer["format"], f"{layer['error']:.3g} of its {layer['of']}",
         f"+{human_bytes(layer['bytes_to_keep'])}")
        for layer in shown
    ]  # fmt: skip
    title = f"rounded layers, worst {len(shown)} of {len(layers)}"
    print_table(console, title, ("weight", "format:", "error:", "to keep it"), rows)


def _figures(quality: Any) -> str:
    shown = {k: v for k, v in quality.items() if k != "metric" and v is not None}
    return f"{quality['metric']} " + ", ".join(
        f"{name.replace('_', ' ')} {value:.6g}" for name, value in shown.items()
    )


def _check_detail(check: Any) -> str:
    if not check["outputs"]:
        return ""
    worst = max(check["outputs"].values(), key=lambda o: o["max_rel"])
    return (
        f", {plural(check['samples'], 'sample')}, {plural(len(check['bindings']), 'size')}, "
        f"largest difference {worst['max_abs']:.2g} "
        + (f"(allowed {worst['allowed']:.2g})" if check["judged"] else "(measured, not judged)")
    )
