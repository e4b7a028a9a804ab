"""`regraft checkpoint`."""

from __future__ import annotations

from pathlib import Path

import click

from regraft.cli.options import load_extensions, output_options, source_options
from regraft.cli.show import out_console, plural, print_json, print_table
from regraft.cli.verb import Verb

_FILE = click.Path(path_type=Path)
_SHOWN = 20


@click.command(
    "checkpoint", cls=Verb,
    epilog="Example: regraft checkpoint small --cut other.safetensors -o other-small.safetensors",
)  # fmt: skip
@click.argument("output", metavar="OUT", type=_FILE)
@click.option("--source", help="The source, when it was moved.")
@click.option("--cut", type=_FILE, metavar="FILE", help="Cut this checkpoint as OUT was.")
@click.option(
    "--restore", type=_FILE, metavar="FILE", help="Put the tensors of this pruned checkpoint back."
)
@click.option("--into", type=_FILE, metavar="FILE", help="The whole checkpoint to put them into.")
@click.option("-o", "--out", type=_FILE, metavar="FILE", help="The file to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@source_options
@output_options
def command(
    output: Path,
    source: str | None,
    cut: Path | None,
    restore: Path | None,
    into: Path | None,
    out: Path | None,
    force: bool,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Show what the pruned OUT kept of its source's checkpoint; move tensors both ways."""
    from regraft.checkpoint_maps import cut_file, describe, kept_of_output, restore_file
    from regraft.ir.errors import UsageError
    from regraft.output import check_destination, staged
    from regraft.rerun import read_output

    if cut is not None and restore is not None:
        raise UsageError("--cut and --restore go opposite ways", hint="give one of them")
    if (restore is None) != (into is None):
        raise UsageError("--restore FILE and --into FILE belong together")
    if (out is None) != (cut is None and restore is None):
        raise UsageError(
            "-o FILE belongs to --cut or --restore", hint="`-h` shows an example of each"
        )
    if out is not None:
        check_destination(out, force=force)
    kept = kept_of_output(read_output(output), source, load_extensions(plugins, trust_remote_code))
    if out is not None:
        with staged(out, force=force) as temp:
            if cut is not None:
                count = cut_file(kept, cut, temp / out.name)
            else:
                assert restore is not None, "checked above"
                assert into is not None, "checked above"
                count = restore_file(kept, restore, into, temp / out.name)
        if as_json:
            print_json({"path": str(out), "tensors": count})
        elif not quiet:
            done = "cut" if cut is not None else "put back"
            out_console().print(f"{plural(count, 'tensor')} {done}: {out}")
        return
    rows = describe(kept)
    if as_json:
        print_json({"tensors": rows})
        return
    console = out_console()
    shown = rows if verbose else rows[:_SHOWN]
    print_table(
        console, str(output), ("tensor:", "shape:", "now:", "kept:"),
        [
            (
                row["name"], str(row["shape"]), str(row["new_shape"]),
                "; ".join(f"{axis}: {_short(text)}" for axis, text in row["kept"].items()) or "all",
            )
            for row in shown
        ],
    )  # fmt: skip
    if len(rows) > len(shown):
        console.print(f"and {len(rows) - len(shown)} more (-v shows all, --json all positions)")


def _short(ranges: str, limit: int = 24) -> str:
    return ranges if len(ranges) <= limit else ranges[: ranges.rindex(",", 0, limit)] + ",…"
