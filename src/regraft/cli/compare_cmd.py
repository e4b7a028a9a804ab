"""`regraft compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regraft.cli.options import (
    load_extensions,
    load_metric,
    load_samples,
    memory_option,
    output_options,
    quality_options,
    sample_options,
    source_options,
    tolerance_options,
)
from regraft.cli.show import out_console, plural, print_json, print_table, progress, warn
from regraft.cli.verb import Verb

if TYPE_CHECKING:
    from regraft.metrics import Asked
    from regraft.sources import Source

DIFFERENT = 3
"""Exit code when the models differ."""


@click.command("compare", cls=Verb, epilog="Example: regraft compare model.onnx out")
@click.argument("a")
@click.argument("b")
@quality_options
@sample_options
@tolerance_options
@memory_option
@source_options
@output_options
def command(
    a: str,
    b: str,
    metric: str | None,
    data: Path | None,
    max_drop: str | None,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    rtol: float | None,
    atol: float | None,
    max_memory: int | None,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Compare the outputs of models A and B on the same samples; exit 3 when they differ.

    With --metric, measure what B loses against A on data instead.
    """
    from regraft.comparison import compare_sources, first_divergence
    from regraft.report import check_entry
    from regraft.sources import open_source

    asked = load_metric(metric, data, max_drop)
    extensions = load_extensions(plugins, trust_remote_code)
    source_a, source_b = open_source(a, extensions), open_source(b, extensions)
    if asked is not None:
        _measure(source_a, source_b, asked, max_memory, as_json=as_json, quiet=quiet)
        return
    with progress(enabled=not quiet and not as_json) as say:
        say("running")
        compared = compare_sources(
            source_a, source_b, samples=load_samples(inputs), dims=dims, seed=seed, rtol=rtol,
            atol=atol, max_memory_bytes=max_memory,
        )  # fmt: skip
        report = compared.report
        divergence = None
        if not report.ok:
            say("searching the first divergence")
            divergence = first_divergence(source_a.module, source_b.module, compared.samples[0])
    warn([*source_a.module.warnings, *source_b.module.warnings], quiet=quiet)
    entry = check_entry(report)
    if as_json:
        outputs = entry["outputs"]
        print_json({"equal": report.ok, "outputs": outputs, "first_divergence": divergence})
    else:
        _print_table(report, divergence)
    if not report.ok:
        click.get_current_context().exit(DIFFERENT)


def _measure(
    a: Source, b: Source, asked: Asked, max_memory: int | None, *, as_json: bool, quiet: bool
) -> None:
    from regraft.comparison import check_inputs, make_runner
    from regraft.quality import check_drop, describe, drop_target, measure_sources

    with progress(enabled=not quiet and not as_json) as say:
        say("running")
        check_inputs(a.module, b.module)
        runners = make_runner(a, max_memory), make_runner(b, max_memory)
        found = measure_sources(asked.metric, asked.data, a, b, runners)
    warn([*a.module.warnings, *b.module.warnings], quiet=quiet)
    if as_json:
        targets = [] if asked.max_drop is None else [asdict(drop_target(found, asked.max_drop))]
        print_json({"quality": found.to_json(), "targets": targets})
    else:
        title = f"{found.metric} on {asked.data}"
        print_table(out_console(), title, ("", "value"), describe(found))
    if asked.max_drop is not None:
        check_drop(found, asked.max_drop)


def _print_table(report: Any, divergence: dict[str, Any] | None) -> None:
    rows = [
        (d.name, f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.cosine:.7f}", f"{d.allowed:.3g}",
         "equal" if d.ok else d.reason)
        for d in report.outputs
    ]  # fmt: skip
    columns = ("output", "max abs", "max rel", "cosine", "allowed", "verdict:")
    sizes = "; ".join(", ".join(f"{k}={v}" for k, v in b.items()) for b in report.bindings)
    title = plural(report.num_samples, "sample") + (f" at {sizes}" if sizes else "")
    console = out_console()
    print_table(console, title, columns, rows)
    if divergence:
        console.print(
            f"first divergence: {divergence['value']} ({divergence['operator']}): "
            f"{divergence['reason']}"
        )
