"""`regraft opt`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regraft.cli.show import warn


@click.command("opt", epilog="Example: regraft opt model.rg --passes canonicalize")
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--passes", default="", help="A pipeline: `name{option=value},name2`.")
@click.option("--check-each", is_flag=True, help="Compare outputs after every pass.")
@click.option("--explain", metavar="RULE", help="Say on stderr why a rule did not match.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write here instead of stdout.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
def command(
    source: Path,
    passes: str,
    check_each: bool,
    explain: str | None,
    out: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Run passes on SOURCE (text IR, an ONNX file, or - for text on stdin) and print text IR."""
    from regraft.api import load  # noqa: PLC0415
    from regraft.conversion import resolve_passes  # noqa: PLC0415
    from regraft.ir.text import parse_module, print_module  # noqa: PLC0415
    from regraft.ir.verify import check  # noqa: PLC0415
    from regraft.output import staged  # noqa: PLC0415
    from regraft.passes.check.runners import EvalRunner  # noqa: PLC0415
    from regraft.passes.check.samples import generate_samples  # noqa: PLC0415
    from regraft.passes.manager import CheckMode, PassManager  # noqa: PLC0415
    from regraft.passes.protocol import Context  # noqa: PLC0415

    module = parse_module(sys.stdin.read()) if str(source) == "-" else load(source)
    check(module)
    ctx = Context(explain=explain)
    mode, samples = CheckMode.OFF, []
    if check_each:
        runner = EvalRunner(module.clone())
        samples = generate_samples(module, lambda inputs: bool(runner(inputs)) or True)
        mode = CheckMode.EACH
    PassManager(ctx, mode, samples).run(module, resolve_passes(passes))
    warn(module.warnings, quiet=quiet)
    if explain is not None:
        for line in ctx.explanations or [f"rule `{explain}` had no near miss"]:
            click.echo(line, err=True)
    text = print_module(module)
    if out is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    with staged(out, force=force) as temp:
        (temp / out.name).write_text(text)
