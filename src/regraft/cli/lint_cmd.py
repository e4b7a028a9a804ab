"""`regraft lint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import load_extensions, output_options, source_options
from regraft.cli.show import out_console, print_json, warn
from regraft.cli.verb import Verb

FOUND = 3
"""Exit code of `--strict` when there is a finding: a check failed."""

_SHOWN = 5


@click.command("lint", cls=Verb, epilog="Example: regraft lint model.onnx --target ort-cpu")
@click.argument("source")
@click.option("--target", default="ort-cpu", show_default=True, help="onnx, ort-cpu or ort-cuda.")
@click.option(
    "--fix",
    "fixed",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write a model without what passes can mend, and list what is left.",
)
@click.option("--strict", is_flag=True, help="Exit with 3 when something is found.")
@source_options
@output_options
def command(
    source: str,
    target: str,
    fixed: Path | None,
    strict: bool,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """List known traps of SOURCE for a target, each with the fix.

    With --fix OUT the model is converted with the pass `mend-quantized` before the usual ones.
    """
    from regraft.backends.onnx import PROFILES
    from regraft.ir.errors import UsageError
    from regraft.lint import RULES, lint, lint_entry
    from regraft.lint.fixing import write_fixed
    from regraft.passes.pipeline import suggest
    from regraft.sources import open_source

    if target not in PROFILES:
        raise UsageError(f"unknown target `{target}`", hint=suggest(target, PROFILES))
    extensions = load_extensions(plugins, trust_remote_code)
    opened = open_source(source, extensions)
    module = opened.module
    findings = lint(module, target, file=opened.file)
    if fixed is not None:
        if not as_json:
            _print(findings, target, verbose)
        file = write_fixed(source, fixed, target, extensions)
        findings = lint(open_source(file).module, target, file=file)
        if not (as_json or quiet):
            out_console().print(f"written: {fixed}; left in it:", soft_wrap=True)
    warn(module.warnings, quiet=quiet)
    if as_json:
        entries = [lint_entry(finding) for finding in findings]
        print_json({"target": target, "rules": len(RULES), "findings": entries})
    else:
        _print(findings, target, verbose)
    if strict and findings:
        click.get_current_context().exit(FOUND)


def _print(findings: list[Any], target: str, verbose: int) -> None:
    console = out_console()
    for finding in findings:
        rule = finding.rule
        console.print(f"{rule.id} {rule.severity.value}: {rule.title} [{rule.name}]")
        shown = finding.places if verbose else finding.places[:_SHOWN]
        for place in shown:
            console.print(f"  at {place}", soft_wrap=True)
        if finding.count > len(shown):
            console.print(f"  and {finding.count - len(shown)} more")
        console.print(f"  why: {rule.why}", soft_wrap=True)
        console.print(f"  fix: {rule.fix}", soft_wrap=True)
    count = "nothing" if not findings else f"{len(findings)} traps"
    console.print(f"{count} found for {target}" if len(findings) != 1 else f"1 trap for {target}")
