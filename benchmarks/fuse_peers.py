"""What other tools fuse in the corpus: `python -m benchmarks.fuse_peers`.

Runs ONNX Runtime's transformer optimizer (with the model type that fits, heads and hidden size
given), onnxscript's `optimize_for_ort`, onnxslim, onnxsim and ONNX Runtime's session over every
fixture, and keeps the operators they leave in `benchmarks/results/fuse-peers.json`. A row is made
again only when the fixture or a version changes. Results that do not run, or differ from the
source, are kept as such.
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.fixtures import store
from benchmarks.measure import CACHE, RESULTS, ROOT

OUT = RESULTS / "fuse-peers.json"
WORK = CACHE / "fuse-peers"

ATTENTION_OPS = (
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention",
    "PackedMultiHeadAttention", "LinearAttention",
)  # fmt: skip
NORM_OPS = (
    "LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "RMSNormalization",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNormalization",
    "GroupNorm", "InstanceNormalization", "BatchNormalization", "LpNormalization",
)  # fmt: skip
ACTIVATION_OPS = (
    "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "BiasSplitGelu", "HardSwish", "Swish", "MoE",
)  # fmt: skip
OTHER_OPS = ("RotaryEmbedding", "Softmax", "Erf")
SHOWN = (*ATTENTION_OPS, *NORM_OPS, *ACTIVATION_OPS, *OTHER_OPS)

HIDDEN = 32  # of every model with attention in the corpus, those of timm aside


@dataclass(frozen=True, slots=True)
class Host:
    """An interpreter and the tools it has.

    Attributes:
        name: folder of the virtual environment.
        tools: tools to run there.
        packages: packages whose versions decide whether a row is still valid.
    """

    name: str
    tools: tuple[str, ...]
    packages: tuple[str, ...]


HOSTS = (
    Host(
        ".venv-export",
        ("ort-transformers", "onnxscript"),
        ("onnxruntime", "onnxscript", "onnx-ir", "torch"),
    ),
    Host(
        ".venv-peers",
        ("source", "onnxslim", "onnxsim", "ort-session"),
        ("onnxslim", "onnxsim", "onnxruntime"),
    ),
)

MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("gpt2",),
    "gpt_bigcode": ("gpt2",),
    "opt": ("gpt2",),
    "bloom": ("gpt2",),
    "gpt_neox": ("gpt_neox",),
    "t5": ("t5",),
    "bart": ("bart",),
    "marian": ("bart",),
    "whisper": ("bart",),
    "clip": ("clip",),
    "vit": ("vit",),
    "deit": ("vit",),
    "beit": ("vit",),
    "dinov2": ("vit",),
    "siglip": ("clip", "vit"),
    "swin": ("swin",),
    "timm_swin": ("swin",),
    "timm": ("vit",),
}
"""Optimizer types by the beginning of the family's name; where several fit, the best one counts."""


def model_types(family: str) -> tuple[str, ...]:
    """Returns the optimizer types to try for a family."""
    for prefix in sorted(MODEL_TYPES, key=len, reverse=True):
        if family.startswith(prefix):
            return MODEL_TYPES[prefix]
    entry = store.manifest()["families"][family]
    if entry["source"] == "transformers" and any(b["rotary"] for b in entry["truth"]["attention"]):
        return ("qwen3", "gpt2", "phi")
    return ("bert", "gpt2") if entry["source"] == "hand" else ("bert",)


def total(ops: Mapping[str, int], kinds: tuple[str, ...]) -> int:
    """Returns how many nodes of these operators there are."""
    return sum(ops.get(kind, 0) for kind in kinds)


def _fused(row: Mapping[str, Any]) -> tuple[int, int, int]:
    ops = row.get("ops", {})
    return total(ops, ATTENTION_OPS), total(ops, NORM_OPS), total(ops, ACTIVATION_OPS)


def _python(host: Host) -> Path:
    return ROOT / host.name / "bin" / "python"


def _versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    code = (
        "import json, sys; from importlib.metadata import version;"
        "print(json.dumps({p: version(p) for p in sys.argv[1:]}))"
    )
    result = subprocess.run(
        [python, "-c", code, *packages], capture_output=True, text=True, check=True
    )
    versions: dict[str, str] = json.loads(result.stdout)
    return versions


def _options(name: str, tool: str) -> list[dict[str, Any]]:
    if tool != "ort-transformers":
        return [{}]
    family = store.manifest()["files"][name]["family"]
    heads = {block.heads for block in store.truth(name).attention}
    known = len(heads) == 1 and store.family(name)["source"] != "timm"
    size = {"num_heads": heads.pop(), "hidden_size": HIDDEN} if known else {}
    return [{"model_type": kind, **size} for kind in model_types(family)]


def _written(name: str) -> tuple[Path, Path]:
    model, inputs = WORK / f"{name}.onnx", WORK / f"{name}.npz"
    onnx.save(store.load(name), model)
    np.savez(inputs, **store.samples(name))  # type: ignore[arg-type]  # stub: names of no keyword
    return model, inputs


class _Worker:
    """A process of `fuse_once` under an interpreter of the peers."""

    def __init__(self, host: Host, timeout_s: float) -> None:
        self.process = subprocess.Popen(
            [
                _python(host),
                ROOT / "benchmarks" / "fuse_once.py",
                "--timeout",
                str(timeout_s),
                "--tools",
                ",".join(host.tools),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a job.

        Raises:
            RuntimeError: the process is gone.
        """
        assert self.process.stdin is not None, "opened as a pipe"
        assert self.process.stdout is not None, "opened as a pipe"
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("`fuse_once` ended: see its message above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None, "opened as a pipe"
        self.process.stdin.close()
        self.process.wait()


def _row(worker: _Worker, name: str, tool: str, files: tuple[Path, Path]) -> dict[str, Any]:
    rows = []
    for options in _options(name, tool):
        model, inputs = files
        job = {
            "model": str(model),
            "inputs": str(inputs),
            "out": str(WORK / f"{tool}.onnx"),
            "tool": tool,
            "options": options,
        }
        answer = worker.ask(job)
        ops = answer.get("ops")
        if ops is not None:
            answer["nodes"] = sum(ops.values())
            answer["ops"] = {op: ops[op] for op in SHOWN if op in ops}
        if "model_type" in options:
            answer["model_type"] = options["model_type"]
        rows.append(answer)
    # A result that runs goes before one that does not, then the one with more fused.
    return max(rows, key=lambda row: (row["ok"] and "broken" not in row, _fused(row)))


def _missing(
    rows: Mapping[str, Any], host: Host, names: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    files = store.manifest()["files"]
    for name in names:
        have = rows.get(name, {})
        for tool in host.tools:
            if have.get("sha256") != files[name]["sha256"] or tool not in have.get("tools", {}):
                yield name, tool


def _save(document: dict[str, Any]) -> None:
    rows = document["fixtures"]
    ordered = {name: rows[name] for name in store.names() if name in rows}
    head = json.dumps(document["versions"], sort_keys=True)
    lines = (f" {json.dumps(name)}: {json.dumps(row)}" for name, row in ordered.items())
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        f'{{\n"date": {json.dumps(document["date"])},\n"versions": {head},\n"fixtures": {{\n'
        + ",\n".join(lines)
        + "\n}\n}\n"
    )


def measure(host: Host, document: dict[str, Any], names: tuple[str, ...], timeout_s: float) -> None:
    """Fills in the rows of one interpreter, saving as it goes."""
    versions = _versions(_python(host), host.packages)
    if any(document["versions"].get(p) not in (None, v) for p, v in versions.items()):
        for row in document["fixtures"].values():
            for tool in host.tools:
                row["tools"].pop(tool, None)
    document["versions"].update(versions)
    worker = _Worker(host, timeout_s)
    try:
        for name, tool in list(_missing(document["fixtures"], host, names)):
            sha256 = store.manifest()["files"][name]["sha256"]
            entry = document["fixtures"].get(name)
            if entry is None or entry["sha256"] != sha256:
                entry = document["fixtures"][name] = {"sha256": sha256, "tools": {}}
            row = entry["tools"][tool] = _row(worker, name, tool, _written(name))
            note = _fused(row) if row["ok"] else row["reason"]
            print(f"{name:36} {tool:17} {note} {row.get('broken', '')}", file=sys.stderr)
            _save(document)
    finally:
        worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="fixtures whose name starts with this")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds of one run of a tool")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    empty = {"date": "", "versions": {}, "fixtures": {}}
    document = json.loads(OUT.read_text()) if OUT.exists() else empty
    document["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    names = tuple(name for name in store.names() if name.startswith(options.only))
    for host in HOSTS:
        if not _python(host).exists():
            raise SystemExit(
                f"error: {host.name} is missing\nhint: `make peers`, `make fixtures-venv`"
            )
        measure(host, document, names, options.timeout)
    _save(document)


if __name__ == "__main__":
    main()
