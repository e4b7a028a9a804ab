"""`regraft audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import load_extensions, load_samples, output_options, source_options
from regraft.cli.show import out_console, print_json, print_table, warn
from regraft.cli.verb import Verb
from regraft.units import human_bytes

_COLUMNS = (
    "layer", "kind:", "attention KL", "worst head", "output error", "spikiness", "original",
    "monotone",
)  # fmt: skip


@click.command(
    "audit", cls=Verb,
    epilog="Example: regraft audit linear.rg --against model.onnx --inputs texts.npz, "
    "or regraft audit moe.onnx --inputs texts.npz",
)  # fmt: skip
@click.argument("source")
@click.option(
    "--against", metavar="ORIGINAL",
    help="The model before it was linearized; without it, experts of SOURCE are audited.",
)  # fmt: skip
@click.option(
    "--inputs", type=click.Path(path_type=Path), required=True,
    help="Samples of real use: an .npz file or a folder of them.",
)  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page.")
@click.option("--force", is_flag=True, help="Replace an existing page.")
@source_options
@output_options
def command(
    source: str,
    against: str | None,
    inputs: Path,
    html: Path | None,
    force: bool,
    plugins: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Show what the linearized model SOURCE really does, or what its experts do.

    Beside the original, every branch of a hybrid is taken away once; the verdict says which of them
    matter. Without it: loads, entropies and likeness of experts, and the active part of their cost.
    """
    from regraft.auditing import audit_module
    from regraft.output import check_destination
    from regraft.sources import open_source

    if html is not None:
        check_destination(html, force=force)
    extensions = load_extensions(plugins, trust_remote_code)
    if against is None:
        if html is not None:
            raise click.UsageError("--html needs --against\nhint: --json prints what was found")
        _show_experts(open_source(source, extensions), load_samples(inputs), as_json, quiet)
        return
    opened, original = open_source(source, extensions), open_source(against, extensions)
    report = audit_module(opened.module, original.module, load_samples(inputs))
    warn([*opened.module.warnings, *original.module.warnings], quiet=quiet)
    if html is not None:
        _write_page(html, opened.label, report, force=force)
    if as_json:
        print_json(report)
        return
    console = out_console()
    rows = [
        (
            layer["number"], layer["kind"], f"{_mean(layer['kl']):.3f}",
            f"{max(layer['kl']):.3f}", f"{layer['error']:.3f}",
            f"{_mean(layer['spikiness']):.2f}", f"{_mean(layer['teacher_spikiness']):.2f}",
            f"{_mean(layer['monotonicity']):.2f}",
        )
        for layer in report["layers"]
    ]  # fmt: skip
    print_table(console, opened.label, _COLUMNS, rows)
    _print_parts(console, f"data, {report['measure']}", report)
    probe = report.get("probe")
    if probe is not None:
        title = f"copies of {probe['period']} tokens, accuracy, chance {probe['chance']:.3f}"
        _print_parts(console, title, probe)
        if not probe["says"]:
            console.print("the original does not copy either: the probe says nothing")
    state, cache = human_bytes(report["state_bytes"]), human_bytes(report["kv_bytes_per_token"])
    kept = report["kept_kv_bytes_per_token"]
    rest = f"; {human_bytes(kept)} of it stay" if kept else ""
    console.print(f"states of {state} in place of a cache of {cache} per token{rest}")
    console.print(f"verdict: {report['verdict']}")


_EXPERT_COLUMNS = (
    "layer:", "experts", "per token", "worst load", "unused", "load entropy", "router entropy",
    "weights alike", "results alike", "norm by score",
)  # fmt: skip


def _show_experts(opened: Any, samples: Any, as_json: bool, quiet: bool) -> None:
    from regraft.auditing_experts import audit_experts

    report = audit_experts(opened.module, samples)
    warn(opened.module.warnings, quiet=quiet)
    if as_json:
        print_json(report)
        return
    console = out_console()
    rows = [
        (
            layer["name"], layer["experts"], f"{layer['chosen']:.2f}",
            f"{layer['worst_load']:.2f}", layer["unused"], f"{layer['load_entropy']:.2f}",
            f"{layer['router_entropy']:.2f}", f"{layer['weight_cosine']:.2f}",
            f"{layer['output_cosine']:.2f}", f"{layer['norm_choice']:.2f}",
        )
        for layer in report["experts"]
    ]  # fmt: skip
    print_table(console, opened.label, _EXPERT_COLUMNS, rows)
    for each in report["skipped"]:
        console.print(f"left out: {each['node']}: {each['reason']}")
    console.print(f"active: {100 * report['active_fraction']:.1f} % of the experts' FLOPs")


def _mean(values: Any) -> float:
    return float(sum(values) / len(values))


def _print_parts(console: Any, title: str, found: Any) -> None:
    rows = [("original", f"{found['original']:.4f}")]
    rows += [(_NAMES[name], f"{value:.4f}") for name, value in found["ablations"].items()]
    if "linear_share" in found:
        rows.append(("lost without the linear branch", f"{100 * found['linear_share']:.1f} %"))
        rows.append(("lost without the window", f"{100 * found['window_share']:.1f} %"))
    rows.append(("verdict", found["verdict"]))
    print_table(console, title, ("", "value:"), rows)


_NAMES = {
    "both": "as it is",
    "window": "window alone",
    "linear": "linear branch alone",
    "none": "no attention",
}


def _write_page(html: Path, label: str, report: Any, *, force: bool) -> None:
    from regraft.output import staged
    from regraft.report_html import audit_page

    with staged(html, force=force) as temp:
        (temp / html.name).write_text(audit_page(label, report), encoding="utf-8")
