"""The page docs/coverage.md, made from what `benchmarks.fuse` and `benchmarks.fuse_peers` measured.

It reads files of results alone, so that it says the same on every machine.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.fuse_coverage import Fused, fused, peers
from benchmarks.measure import RESULTS

BLOCKS = RESULTS / "fuse-blocks.json"
TOOLS = ("source", "ort-transformers", "onnxscript", "onnxslim", "onnxsim")
_KINDS = ("attention", "ffn", "norms")
_FUSED = ("attention", "norms", "activations")

_HEAD = """\
A fixture is a tiny model of one family as one exporter writes it: the TorchScript exporter
(`ts17`), the dynamo exporter at opset 18 and 23 (`dyn18`, `dyn23`), and graphs written by hand.
What each contains is stated by the script that builds it. `recognized / stated` counts blocks of
attention, feed-forward blocks and norms that the analysis reports as what they are; `lifted` counts
the attention and the norms that become one canonical operator, of those that one operator
computes. The other columns count blocks that end in a fused operator of the written file:
attention / norms / activations. The cost table of `ort-cpu` leaves attention written out where
that is faster, which is why its column counts less attention than is lifted. The `source` column is
what the exporter itself wrote fused; `ort-transformers` is ONNX Runtime's transformer optimizer
with the model type that fits best, `onnxscript` its `optimize_for_ort`. A file that does not run,
or differs from the source by more than 1e-3, counts as nothing and is noted as failed.
"""


def coverage_page(note: str) -> str:
    """Returns the page.

    Args:
        note: The line that says what made it.

    Raises:
        FileNotFoundError: The coverage was not measured yet.
    """
    rows: Mapping[str, Any] = json.loads(BLOCKS.read_text())["fixtures"]
    theirs = peers()
    parts = ["# Coverage of structure recognition and fusion", "", note, "", _HEAD]
    header = ["recognized / stated: attention, ffn, norms", "lifted", "regraft `ort-cpu`", *TOOLS]
    for title, key in (("By class of architecture", "kind"), ("By exporter", "group")):
        parts += [f"## {title}", "", *_table_head(["", "files", *header])]
        for name in dict.fromkeys(row[key] for row in rows.values()):
            own = {fixture: row for fixture, row in rows.items() if row[key] == name}
            cells = [name, str(len(own)), *_cells(own, theirs)]
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    parts += [
        "## Every fixture",
        "",
        *_table_head(["fixture", "nodes: source, onnx, ort-cpu", *header]),
    ]
    for fixture, row in rows.items():
        nodes = row["nodes"]
        counts = f"{nodes['source']}, {nodes['onnx']}, {nodes['ort-cpu']}"
        cells = [f"`{fixture}`", counts, *_cells({fixture: row}, theirs)]
        parts.append(f"| {' | '.join(cells)} |")
    return "\n".join([*parts, ""])


def _table_head(columns: list[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def _cells(rows: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found: Counter[str] = Counter()
    for row in rows.values():
        for kind in _KINDS:
            found[f"stated {kind}"] += row["stated"][kind]
            found[kind] += row["recognized"][kind]
        found["lifted"] += row["lifted"]
        found["liftable"] += row["liftable"]
    cells = [
        ", ".join(f"{found[kind]}/{found[f'stated {kind}']}" for kind in _KINDS),
        f"{found['lifted']}/{found['liftable']}",
        _fused(Fused(**row["emitted"]) for row in rows.values()),
    ]
    cells += [_fused(fused(name, theirs[name][tool]) for name in rows) for tool in TOOLS]
    return cells


def _fused(parts: Iterable[Fused]) -> str:
    total = sum(parts, Fused())
    failed = f" ({total.wrong} failed)" if total.wrong else ""
    return " / ".join(str(getattr(total, kind)) for kind in _FUSED) + failed
