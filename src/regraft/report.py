"""`report.json`: what a conversion did, for machines; times stand here and nowhere else."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from regraft import __version__
from regraft.ir.constants import opaque
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.passes.check.module_check import CheckReport
from regraft.passes.manager import PassRecord
from regraft.passes.protocol import LayerError
from regraft.sources import Source

_PACKAGES = ("numpy", "onnx", "onnxruntime")


def versions() -> dict[str, str]:
    """Returns versions of regraft, Python and the packages that shape a result."""
    found = {"regraft": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def operator_counts(graph: Graph) -> dict[str, int]:
    """Returns compute nodes by operator, bodies included, most frequent first."""
    counts: Counter[str] = Counter()
    for node in graph.walk():
        if not node.op.traits & Trait.CONSTANT:
            counts[node.attrs["op_type"] if node.op is opaque else node.op.name] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def pass_entry(record: PassRecord, check: CheckReport | None = None) -> dict[str, Any]:
    """Returns one pass as the `passes` entry of `report.json`.

    Args:
        record: The pass.
        check: The module check that followed, which then is what verified the pass.
    """
    verified = record.verified
    if record.changed and check is not None and check.verified == "module" and verified != "each":
        verified = "module"
    return {
        "name": record.name,
        "pipeline": record.pipeline,
        "changed": record.changed,
        "seconds": round(record.seconds, 6),
        "contract": record.contract,
        "verified": verified,
        "stats": dict(record.stats),
        "skipped": [asdict(skip) for skip in record.skipped],
        "unproved": [asdict(place) for place in record.unproved],
        **({"layers": [layer_entry(layer) for layer in record.layers]} if record.layers else {}),
        **({"plots": [asdict(plot) for plot in record.plots]} if record.plots else {}),
        "nodes": [record.nodes_before, record.nodes_after],
    }


def layer_entry(layer: LayerError) -> dict[str, Any]:
    """Returns what rounding costs a layer as JSON."""
    return {
        "name": layer.name, "format": layer.format, "error": float(f"{layer.error:.4g}"),
        "of": "results" if layer.of_results else "weight", "bytes": layer.num_bytes,
        "bytes_to_keep": layer.bytes_to_keep,
    }  # fmt: skip


def check_entry(report: CheckReport) -> dict[str, Any]:
    """Returns the module check as JSON."""
    return {
        "verified": report.verified,
        "ok": report.ok,
        "judged": report.judged,
        "samples": report.num_samples,
        "bindings": [dict(b) for b in report.bindings],
        **({"note": report.note} if report.note else {}),
        **({"parts": {k: check_entry(v) for k, v in report.parts.items()}} if report.parts else {}),
        "outputs": {
            diff.name: {
                "max_abs": diff.max_abs, "max_rel": diff.max_rel, "cosine": diff.cosine,
                "allowed": diff.allowed, "ok": diff.ok, "reason": diff.reason,
            }
            for diff in report.outputs
        },
    }  # fmt: skip


def build_report(
    source: Source,
    module: Module,
    records: Sequence[PassRecord],
    check: CheckReport,
    *,
    before: Mapping[str, int],
    target: str,
    num_bytes: int | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Returns the content of `report.json`."""
    after = operator_counts(module.graph)
    return {
        "source": {"path": source.label, "sha256": source.sha256, "bytes": source.num_bytes},
        "target": target,
        "passes": [pass_entry(record, check) for record in records],
        "check": check_entry(check),
        "targets": [asdict(target) for record in records for target in record.targets],
        "operators": {"before": dict(before), "after": after},
        "nodes": {"before": sum(before.values()), "after": sum(after.values())},
        "bytes": {"before": source.num_bytes, "after": num_bytes},
        "warnings": list(module.warnings),
        "assumptions": [
            f"{item.left} = {item.right} ({item.reason})" for item in module.assumptions
        ],
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "versions": versions(),
    }
