"""`regraft bisect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import (
    load_extensions,
    load_samples,
    output_options,
    sample_options,
    source_options,
    tolerance_options,
)
from regraft.cli.show import out_console, print_json, print_table, progress, warn
from regraft.cli.verb import Verb

FOUND = 3
"""Exit code when a pass breaks: a check failed."""


@click.command(
    "bisect", cls=Verb, epilog="Example: regraft bisect model.onnx --passes canonicalize,fuse"
)
@click.argument("source")
@click.option("--passes", metavar="PIPELINE", help="`name{option=value},name2`.")
@click.option("--recipe", type=click.Path(path_type=Path), help="A YAML recipe.")
@click.option("--target", help="Of the conversion; default: the recipe's, else ort-cpu.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the reproducer.")
@sample_options
@tolerance_options
@source_options
@output_options
def command(
    source: str,
    passes: str | None,
    recipe: Path | None,
    target: str | None,
    out: Path | None,
    inputs: Path | None,
    dims: dict[str, int],
    seed: int,
    rtol: float | None,
    atol: float | None,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Find the first pass and match after which outputs of SOURCE leave tolerance; exit 3 then."""
    from regraft.bisection import as_json as to_json
    from regraft.bisection import bisect
    from regraft.ir.errors import UsageError
    from regraft.passes.recipe import read_recipe
    from regraft.pipelines import resolve_passes
    from regraft.sources import open_source

    if passes is not None and recipe is not None:
        raise UsageError("give --passes or --recipe, not both")
    extensions = load_extensions(plugins, trust_remote_code)
    chosen: Any = passes
    if recipe is not None:
        read = read_recipe(recipe, extensions.passes)
        chosen, target = read.passes, target or read.settings.get("target")
    module = open_source(source, extensions).module
    with progress(enabled=not quiet and not as_json) as say:
        finding = bisect(
            module, resolve_passes(chosen, extensions.passes), target=target or "ort-cpu",
            samples=load_samples(inputs), dims=dims, seed=seed, rtol=rtol, atol=atol, folder=out,
            emitters=extensions.onnx_emitters, say=say,
        )  # fmt: skip
    warn(module.warnings, quiet=quiet)
    if as_json:
        print_json(to_json(finding))
    else:
        _print(finding, source)
    if finding.pass_text is not None:
        click.get_current_context().exit(FOUND)


def _print(finding: Any, source: str) -> None:
    console = out_console()
    if finding.pass_text is None:
        console.print(f"outputs stay within tolerance after every pass ({finding.num_runs} runs)")
        return
    rows = [("pass", finding.pass_text), ("reason", finding.reason)]
    if finding.rule is not None:
        rows.append(("match", f"rule `{finding.rule}` at {finding.match}"))
        rows.append(("rewrite", f"number {finding.match_idx} of the pass"))
    if finding.first_value is not None:
        rows.append(("first value", f"%{finding.first_value}"))
    print_table(console, source, ("", "found:"), rows)
    if finding.reproducer is not None:
        count = "1 node" if finding.num_nodes == 1 else f"{finding.num_nodes} nodes"
        # a path is not cut by a table
        console.print(f"reproducer of {count}: `{finding.reproducer}`", soft_wrap=True)
