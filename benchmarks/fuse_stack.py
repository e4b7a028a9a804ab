"""The 9,200-node stack with fusion: nodes left for each target, and time against onnxsim."""

from collections.abc import Iterator

from benchmarks import timing
from benchmarks.core_simplify import Once, simplify_once, stack_file
from benchmarks.measure import Measurement, Row, Settings, at_most, shown

BARS = {
    "regraft-ort-cpu": ("ort-cpu", 1_600),
    "regraft-onnx-20": ("onnx, opset 20", 1_600),
    "regraft-onnx": ("onnx, its own opset 17", 3_600),
}
"""What is written, and the most nodes it may have."""


def measure(settings: Settings) -> Iterator[Row]:
    """Yields nodes and times; the runs of all tools are interleaved."""
    source = stack_file(settings, 9_200)
    tools = (*BARS, "onnxsim")
    runs: dict[str, list[Once]] = {tool: [] for tool in tools}
    for idx in range(settings.rounds):
        for tool in tools if idx % 2 else tools[::-1]:
            runs[tool].append(simplify_once(settings, tool, source))
    peer = runs["onnxsim"]
    for tool, (label, most) in BARS.items():
        yield at_most(f"9,200 nodes: left for {label}", runs[tool][0].nodes, most, "nodes")
        inner = timing.ratio([r.simplify_s for r in runs[tool]], [r.simplify_s for r in peer])
        outer = timing.ratio([r.all_s for r in runs[tool]], [r.all_s for r in peer])
        name = f"9,200 nodes: passes for {label} / onnxsim"
        yield Row(name, inner.median, "x", 1.0, note=str(inner), judged=inner.low)
        name = f"9,200 nodes: load to save for {label} / onnxsim"
        yield Row(name, outer.median, "x", 1.0, note=str(outer), judged=outer.low)
    seconds = timing.median([r.simplify_s for r in peer])
    yield shown("9,200 nodes: onnxsim", seconds, "s", f"{peer[0].nodes:,} nodes left")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("stack", "nodes left of 9,200 by target, in less time than onnxsim", measure),
)
