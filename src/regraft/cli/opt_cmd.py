"""`regraft opt`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from regraft.cli.options import (
    load_extensions,
    load_samples,
    output_options,
    pipeline_options,
    sample_options,
    show_explanations,
    source_options,
)
from regraft.cli.show import print_json, warn
from regraft.cli.verb import Verb, check_option


@click.command("opt", cls=Verb, epilog="Example: regraft opt model.rg --passes canonicalize")
@click.argument("source")
@pipeline_options
@check_option("match")
@sample_options
@source_options
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write here instead of stdout.")
@click.option(
    "--dump", type=click.Path(path_type=Path), help="Folder for the text after each pass."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(
    source: str,
    passes: str | None,
    recipe: Path | None,
    explain: str | None,
    check: str,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    out: Path | None,
    dump: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Run passes on SOURCE (text IR, an ONNX file, or - for text on stdin) and print text IR."""
    from regraft.api import run_passes
    from regraft.ir.errors import UsageError
    from regraft.ir.text import parse_module, print_module
    from regraft.ir.verify import check as check_ir
    from regraft.output import check_destination, save_text
    from regraft.passes.manager import CheckMode
    from regraft.passes.pipeline import parse_pipeline
    from regraft.passes.recipe import read_recipe
    from regraft.report import pass_entry
    from regraft.sources import open_source

    if passes is not None and recipe is not None:
        raise UsageError("give --passes or --recipe, not both")
    if out is not None:
        check_destination(out, force=force)
    extensions = load_extensions(plugins, trust_remote_code)
    if recipe is not None:
        chosen: Any = read_recipe(recipe, extensions.passes).passes
    else:
        chosen = parse_pipeline(passes or "", extensions.passes)
    if source == "-":
        module = parse_module(sys.stdin.read(), ops=extensions.operators)
    else:
        module = open_source(source, extensions).module
    check_ir(module)
    explanations: list[str] = []
    records = run_passes(
        module, chosen, samples=load_samples(inputs), dims=dims, check=CheckMode(check), seed=seed,
        explain=explain, explanations=explanations, dump_dir=dump,
        extensions=extensions,
    )  # fmt: skip
    warn(module.warnings, quiet=quiet)
    show_explanations(explain, explanations)
    if verbose:
        for record in records:
            entry = pass_entry(record)
            verdict = f"changed, checked: {record.verified}" if record.changed else "unchanged"
            click.echo(f"{record.pipeline}: {verdict} {dict(entry['stats'])}", err=True)
    if out is not None:
        save_text(module, out, force=force)
    if as_json:
        entries = [pass_entry(record) for record in records]
        print_json({"text": print_module(module), "passes": entries})
    elif out is None:
        click.echo(print_module(module), nl=False)
