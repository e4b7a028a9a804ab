"""`regraft bench`."""

from __future__ import annotations

from pathlib import Path

import click

from regraft.cli.options import (
    load_extensions,
    load_samples,
    output_options,
    sample_options,
    source_options,
    threads_option,
)
from regraft.cli.show import finite, out_console, print_json, print_table, progress, warn
from regraft.cli.verb import Verb


@click.command("bench", cls=Verb, epilog="Example: regraft bench model.onnx out --dims seq=128")
@click.argument("models", nargs=-1, required=True)
@threads_option
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Rounds; default 50, fewer where a round exceeds a second.",
)
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a page with plots of latency and size.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing page.")
@sample_options
@source_options
@output_options
def command(
    models: tuple[str, ...],
    threads: int,
    rounds: int | None,
    html: Path | None,
    force: bool,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Measure the latency of MODELS, interleaved; ratios are to the first."""
    from regraft.benching import bench
    from regraft.output import check_destination, staged
    from regraft.report_html import bench_page
    from regraft.sources import open_source

    if html is not None:
        check_destination(html, force=force)
    extensions = load_extensions(plugins, trust_remote_code)
    with progress(enabled=not quiet and not as_json) as say:
        say("loading")
        sources = [open_source(model, extensions) for model in models]
        say("measuring")
        result = bench(
            sources, samples=load_samples(inputs), dims=dims, seed=seed, threads=threads,
            rounds=rounds,
        )  # fmt: skip
    for source in sources:
        warn(source.module.warnings, quiet=quiet)
    document = result.to_json()
    if html is not None:
        page = bench_page(" against ".join(Path(model).name for model in models), finite(document))
        with staged(html, force=force) as temp:
            (temp / html.name).write_text(page, encoding="utf-8")
    if as_json:
        print_json(document)
        return
    rows = [
        (
            run["path"], f"{run['median_ms']:.3f}", f"{run['p10_ms']:.3f}", f"{run['p90_ms']:.3f}",
            f"{run['ratio']:.3f}", "{:.3f} to {:.3f}".format(*run["interval"]),
        )
        for run in document["runs"]
    ]  # fmt: skip
    sizes = ", ".join(f"{name}={size}" for name, size in document["binding"].items())
    threads_text = "1 thread" if threads == 1 else f"{threads} threads"
    title = f"{document['rounds']} rounds, {threads_text}, sizes {sizes or 'fixed'}"
    columns = ("model", "median ms", "p10", "p90", "ratio", "95 % interval")
    print_table(out_console(), title, columns, rows)
