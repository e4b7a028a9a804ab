"""`regraft compare`."""

from __future__ import annotations

from pathlib import Path

import click

from regraft.cli.options import load_samples, output_options, sample_options, tolerance_options
from regraft.cli.show import out_console, print_json, progress, table, warn


@click.command("compare", epilog="Example: regraft compare model.onnx out/model.onnx")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@sample_options
@tolerance_options
@output_options
def command(
    a: Path,
    b: Path,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    rtol: float | None,
    atol: float | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Compare the outputs of models A and B on the same samples; exit 3 when they differ."""
    from regraft.comparison import (  # noqa: PLC0415
        choose_samples,
        compare_sources,
        first_divergence,
        make_runner,
    )
    from regraft.report import check_entry  # noqa: PLC0415
    from regraft.sources import open_source  # noqa: PLC0415

    source_a, source_b = open_source(a), open_source(b)
    with progress(enabled=not quiet and not as_json) as say:
        say("running")
        samples = load_samples(inputs)
        report = compare_sources(
            source_a, source_b, samples=samples, dims=dims, seed=seed, rtol=rtol, atol=atol
        )
        divergence = None
        if not report.ok:
            say("searching the first divergence")
            runner = make_runner(source_a)
            used = choose_samples(source_a.module, runner, samples, dims, seed)
            divergence = first_divergence(source_a.module, source_b.module, used[0])
    warn([*source_a.module.warnings, *source_b.module.warnings], quiet=quiet or not verbose)
    entry = check_entry(report)
    if as_json:
        print_json({"equal": report.ok, "outputs": entry["outputs"], "first_divergence": divergence})
    else:
        rows = [
            (d.name, f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.cosine:.7f}", f"{d.allowed:.3g}",
             "equal" if d.ok else d.reason)
            for d in report.outputs
        ]  # fmt: skip
        columns = ("output", "max abs", "max rel", "cosine", "allowed", "verdict:")
        title = f"{report.num_samples} samples, sizes {[dict(b) for b in report.bindings]}"
        out_console().print(table(title, columns, rows))
        if divergence:
            out_console().print(
                f"first divergence: `{divergence['value']}` ({divergence['operator']}): "
                f"{divergence['reason']}"
            )
    if not report.ok:
        click.get_current_context().exit(3)
