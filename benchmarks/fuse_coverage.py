"""How much of the corpus the other tools fuse: `python -m benchmarks.fuse_coverage`.

Reads `benchmarks/results/fuse-peers.json` (`python -m benchmarks.fuse_peers` makes it) and counts
blocks that end in a fused operator, at most as many as a fixture has. Blocks that the exporter
itself wrote fused are the `source` column: what a tool adds is its column less that one.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fixtures import store
from benchmarks.fixtures.family import EXPORTERS
from benchmarks.fuse_peers import ACTIVATION_OPS, ATTENTION_OPS, NORM_OPS, OUT, total

TOOLS = ("source", "ort-session", "ort-transformers", "onnxscript", "onnxslim", "onnxsim")
GROUPS = (*EXPORTERS, "hand")

MAX_DIFFERENCE = 1e-3
"""Relative to the largest output: a tanh GELU is off by 3e-4, a wrong graph by 1e-1."""


@dataclass(frozen=True, slots=True)
class Fused:
    """Blocks of one fixture, or of several, that end in a fused operator."""

    attention: int = 0
    norms: int = 0
    activations: int = 0
    wrong: int = 0

    def __add__(self, other: "Fused") -> "Fused":
        """Returns the sums."""
        return Fused(
            self.attention + other.attention,
            self.norms + other.norms,
            self.activations + other.activations,
            self.wrong + other.wrong,
        )


def stated(name: str) -> Fused:
    """Returns how many blocks a fixture has; attention of every form, activations that fuse."""
    truth = store.truth(name)
    norms = truth.norms
    assert norms is not None, "the store states norms"
    fusible = ("gelu", "gelu_tanh", "quick_gelu", "silu", "hard_swish")
    return Fused(
        attention=sum(b.count for b in truth.attention if b.form == "dot_product"),
        norms=norms.layer + norms.rms + norms.group,
        activations=sum(b.count for b in truth.ffn if b.activation in fusible and not b.experts),
    )


def peers() -> dict[str, dict[str, Any]]:
    """Returns the rows of every tool by fixture.

    Raises:
        FileNotFoundError: nothing was measured yet.
    """
    document = json.loads(OUT.read_text())
    return {name: entry["tools"] for name, entry in document["fixtures"].items()}


def fused(name: str, row: Mapping[str, Any]) -> Fused:
    """Returns the blocks of a fixture that a tool fused; none where its result is wrong."""
    if not row["ok"] or "broken" in row or row["difference"] > MAX_DIFFERENCE:
        return Fused(wrong=1)
    there, ops = stated(name), row["ops"]
    return Fused(
        min(there.attention, total(ops, ATTENTION_OPS)),
        min(there.norms, total(ops, NORM_OPS)),
        min(there.activations, total(ops, ACTIVATION_OPS)),
    )


def _sum(parts: Iterable[Fused]) -> Fused:
    return sum(parts, Fused())


def _cell(part: Fused) -> str:
    note = f" ({part.wrong} fail)" if part.wrong else ""
    return f"{part.attention} / {part.norms} / {part.activations}{note}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = peers()
    print("Blocks that end fused: attention / norms / activations of feed-forward blocks\n")
    print("| fixtures | stated |", " | ".join(TOOLS), "|")
    print("| --- |", " --- |" * (len(TOOLS) + 1))
    for group in GROUPS:
        names = [name for name in store.names(group) if name in rows]
        cells = [_cell(_sum(stated(name) for name in names))]
        for tool in TOOLS:
            have = [name for name in names if tool in rows[name]]
            cell = _cell(_sum(fused(name, rows[name][tool]) for name in have))
            cells.append(cell if len(have) == len(names) else f"{cell} of {len(have)}")
        print(f"| {group} ({len(names)}) |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
