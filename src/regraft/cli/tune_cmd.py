"""`regraft tune`."""

from __future__ import annotations

from pathlib import Path

import click

from regraft.cli.options import output_options, threads_option
from regraft.cli.show import out_console, plural, print_json, print_table, progress, warn
from regraft.cli.verb import Verb


@click.command("tune", cls=Verb, epilog="Example: regraft tune --target ort-cpu --quick")
@click.option("--target", default="ort-cpu", show_default=True, help="Whose costs to measure.")
@click.option("--quick", is_flag=True, help="Fewer sizes, fewer rounds: about half a minute.")
@click.option("--site", "sites", multiple=True, metavar="NAME", help="Measure this site alone.")
@threads_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The table's file; default: where `convert` looks for it.",
)
@click.option("--force", is_flag=True, help="Replace an existing table.")
@output_options
def command(
    target: str,
    quick: bool,
    sites: tuple[str, ...],
    threads: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Measure the cost table by which `legalize` chooses on this machine.

    With `--target triton`: find launch configurations of kernels for this GPU, which packages are
    then written with; `--site` names a kernel.
    """
    if target == "triton":
        _tune_kernels(quick, sites, out, force, as_json, quiet)
        return
    from regraft.output import staged
    from regraft.tables import user_table
    from regraft.tuning import check_sites, summary, tune

    check_sites(target, sites)
    path = out if out is not None else user_table(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path, force=force or out is None) as temp:
        with progress(enabled=not quiet and not as_json) as say:
            tuning = tune(
                target, quick=quick, threads=threads, sites=sites,
                progress=lambda i, total, case: say(f"{i + 1} of {total}: {case}"),
            )  # fmt: skip
        (temp / path.name).write_text(tuning.table.to_json(), encoding="utf-8")
    warn(tuning.failures, quiet=quiet)
    if as_json:
        print_json(
            {
                "path": str(path),
                "machine": dict(tuning.table.machine),
                "entries": len(tuning.table.entries),
                "seconds": round(tuning.seconds, 1),
                "failures": list(tuning.failures),
            }
        )
        return
    title = f"{plural(len(tuning.table.entries), 'case')} in {tuning.seconds:.0f} s"
    rows = [
        (site, form, n, f"{low:.2f} to {high:.2f}")
        for site, form, n, low, high in summary(tuning.table)
    ]
    columns = ("site", "form:", "fastest in", "time by the standard form")
    print_table(out_console(), title, columns, rows)
    click.echo(f"wrote {path}", err=True)


def _tune_kernels(
    quick: bool, kernels: tuple[str, ...], out: Path | None, force: bool, as_json: bool, quiet: bool
) -> None:
    from importlib.util import find_spec

    from regraft.ir.errors import UnsupportedError
    from regraft.output import staged
    from regraft.tables import user_table

    if find_spec("torch") is None or find_spec("triton") is None:
        raise UnsupportedError(
            "`tune --target triton` needs torch and triton", hint='pip install "regraft[triton]"'
        )
    from regraft.kernel_tuning import (  # it imports torch
        check_kernels,
        gpu_name,
        merge_into,
        tune_kernels,
    )

    check_kernels(kernels)
    gpu_name()
    path = out if out is not None else user_table("triton")
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path, force=force or out is None) as temp:
        with progress(enabled=not quiet and not as_json) as say:
            tuning = tune_kernels(
                kernels, quick=quick,
                progress=lambda i, total, what: say(f"{i + 1} of {total}: {what}"),
            )  # fmt: skip
        (temp / path.name).write_text(merge_into(path, tuning), encoding="utf-8")
    warn(tuning.failures, quiet=quiet)
    if as_json:
        gains = [list(gain) for gain in tuning.gains]
        print_json({"path": str(path), "device": tuning.device, "gains": gains,
                    "failures": list(tuning.failures)})  # fmt: skip
        return
    rows = [(kernel, dtype, size, f"{gain:.2f}") for kernel, dtype, size, gain in tuning.gains]
    title = f"{plural(len(rows), 'bucket')} on {tuning.device}"
    print_table(out_console(), title, ("kernel", "dtype", "up to:", "times faster"), rows)
    click.echo(f"wrote {path}", err=True)
