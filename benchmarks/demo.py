"""Converts two trained models with the command line and compares them with their sources.

`make demo` installs what this needs. For each model: `regraft convert`, `regraft compare` on real
inputs, then latency of source and result in ONNX Runtime (one thread, interleaved, median of the
ratios of 50 rounds) and size on disk.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks import models, timing
from benchmarks.measure import MB, ROOT

SHOWN = ("ppocr-rec", "minilm-l3")
ABOUT = {
    "ppocr-rec": "PP-OCRv4 text recognition (CNN + attention)",
    "minilm-l3": "paraphrase-MiniLM-L3 sentence encoder",
}
ROUNDS = 50
WORK = ROOT / ".cache" / "demo"


@dataclass(frozen=True, slots=True)
class Shown:
    """What the table says about one model; pairs are (source, result)."""

    name: str
    convert_s: float
    nodes: tuple[int, int]
    size_bytes: tuple[int, int]
    latency_ms: tuple[float, float]
    ratio: timing.Ratio
    max_abs: float
    equal: bool


def regraft(*words: str) -> tuple[int, str]:
    """Prints and runs a command line of regraft; returns its status and standard output."""
    argv = [str(Path(sys.executable).with_name("regraft")), *words]
    print("$ regraft", *words, flush=True)
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # a source may hold initializers that nothing reads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _latency(
    source: Path, result: Path, sample: models.Sample
) -> tuple[tuple[float, float], timing.Ratio]:
    before, after = _session(source), _session(result)
    seconds = timing.interleaved(
        [lambda: before.run(None, sample), lambda: after.run(None, sample)], ROUNDS
    )
    medians = (timing.median(seconds[0]) * 1e3, timing.median(seconds[1]) * 1e3)
    return medians, timing.ratio(seconds[1], seconds[0])


def _node_count(graph: onnx.GraphProto) -> int:
    bodies = [
        attribute.g
        for node in graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.GRAPH
    ]
    return len(graph.node) + sum(_node_count(body) for body in bodies)


def _size(folder_or_file: Path) -> int:
    if folder_or_file.is_file():
        return folder_or_file.stat().st_size
    return sum(file.stat().st_size for file in folder_or_file.glob("model.onnx*"))


def show(name: str) -> Shown | None:
    """Converts, checks and measures one model; returns None when the conversion failed."""
    model = models.named(name)
    source, out = models.find(model), WORK / name
    inputs = WORK / f"{name}-inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(parents=True)
    samples = models.samples(model)
    for idx, sample in enumerate(samples):
        np.savez(inputs / f"sample{idx}.npz", **sample)  # type: ignore[arg-type]  # `allow_pickle` is typed

    start = time.perf_counter()
    status, output = regraft(
        "convert", _relative(source), "-o", _relative(out), "--inputs", _relative(inputs), "--force"
    )
    convert_s = time.perf_counter() - start
    print(output)
    if status != 0:
        return None
    result = out / "model.onnx"
    status, output = regraft(
        "compare", _relative(source), _relative(result), "--inputs", _relative(inputs), "--json"
    )
    if status not in (0, 3):  # 3: compared, and different
        print(output)
        return None
    report = json.loads(output)
    latency_ms, ratio = _latency(source, result, samples[-1])
    nodes = [_node_count(onnx.load(p, load_external_data=False).graph) for p in (source, result)]
    return Shown(
        name,
        convert_s,
        (nodes[0], nodes[1]),
        (_size(source), _size(out)),
        latency_ms,
        ratio,
        max(float(row["max_abs"]) for row in report["outputs"].values()),
        bool(report["equal"]),
    )


def main() -> int:
    rows = {name: show(name) for name in SHOWN}
    table = Table(
        "model", "nodes", "size MB", "latency ms", "latency ratio", "max difference", "equal",
        "convert s",
        title="before → after, ONNX Runtime on one CPU thread",
    )  # fmt: skip
    for name, row in rows.items():
        if row is None:
            table.add_row(ABOUT[name], *["-"] * 5, "[red]FAILED[/]", "-")
            continue
        table.add_row(
            ABOUT[name],
            f"{row.nodes[0]} → {row.nodes[1]}",
            f"{row.size_bytes[0] / MB:.2f} → {row.size_bytes[1] / MB:.2f}",
            f"{row.latency_ms[0]:.2f} → {row.latency_ms[1]:.2f}",
            f"{row.ratio.median:.3f} ({row.ratio.low:.3f} to {row.ratio.high:.3f})",
            f"{row.max_abs:.1e}",
            "yes" if row.equal else "[red]NO[/]",
            f"{row.convert_s:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0 if all(row is not None and row.equal for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
