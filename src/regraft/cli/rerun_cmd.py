"""`regraft rerun`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from regraft.cli.options import load_extensions, output_options
from regraft.cli.show import out_console, print_json, print_table, progress
from regraft.cli.verb import Verb

DIFFERENT = 3
"""Exit code when a file came out otherwise."""


@click.command("rerun", cls=Verb, epilog="Example: regraft rerun out --source model.onnx")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), help="The source, when it was moved.")
@click.option("--train", type=click.Path(path_type=Path), help="Its --train, when it was moved.")
@click.option(
    "--calibrate", type=click.Path(path_type=Path), help="Its --calibrate, when it was moved."
)
@click.option("--inputs", type=click.Path(path_type=Path), help="Its --inputs, when it was moved.")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE.py:NAME|NAME",
    help="Load this instead of the recorded plugins (runs it).",
)  # fmt: skip
@click.option("--allow-plugins", is_flag=True, help="Load the recorded plugins (runs them).")
@output_options
def command(
    out: Path,
    source: Path | None,
    train: Path | None,
    calibrate: Path | None,
    inputs: Path | None,
    plugins: tuple[str, ...],
    allow_plugins: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Make OUT again from its recipe and recorded decisions; exit 3 when a model file differs."""
    from regraft.rerun import find_source, read_output, rerun

    recorded = read_output(out)
    path = find_source(recorded, source)
    if recorded.plugins and not plugins:
        plugins = _allowed(recorded, asked=allow_plugins)
    with progress(enabled=not quiet and not as_json) as say:
        outcome = rerun(
            recorded, path, load_extensions(plugins),
            data={"train": train, "calibrate": calibrate, "inputs": inputs}, say=say,
        )  # fmt: skip
    changed = {name: list(pair) for name, pair in outcome.changed_versions.items()}
    if as_json:
        print_json({
            "identical": outcome.is_identical, "files": dict(outcome.files),
            "difference": outcome.difference, "changed_versions": changed,
        })  # fmt: skip
    else:
        _print(outcome, out, verbose)
    if not outcome.is_identical:
        click.get_current_context().exit(DIFFERENT)


def _allowed(recorded: Any, *, asked: bool) -> tuple[str, ...]:
    """Returns the recorded plugins when the user lets them run."""
    from regraft.ir.errors import UsageError
    from regraft.rerun import check_plugins

    places = tuple(check_plugins(recorded))
    names = ", ".join(f"`{place}`" for place in places)
    if asked:
        return places
    if sys.stdin.isatty() and click.confirm(f"The output was made with {names}. Run it?", err=True):
        return places
    raise UsageError(
        f"the output was made with the plugin {names}, which would run its code",
        hint="give --allow-plugins, or --plugin FILE.py:NAME",
    )


def _print(outcome: Any, out: Path, verbose: int) -> None:
    words = {True: "identical", False: "different", None: "on one side only"}
    console = out_console()
    rows = [(name, words[same]) for name, same in outcome.files.items()]
    print_table(console, str(out), ("file", "again:"), rows)
    if outcome.difference:
        console.print(outcome.difference)
    if outcome.changed_versions and (verbose or not outcome.is_identical):
        for name, (old, new) in outcome.changed_versions.items():
            console.print(f"{name}: {old} made it, {new} is installed")
