"""Time of `canonicalize` on unfused stacks of 920, 9,200 and 92,000 nodes, against the peers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import timing
from benchmarks.measure import ROOT, Measurement, Row, Settings, at_most, shown

SIZES = {920: 20, 9_200: 200, 92_000: 2_000}


@dataclass(frozen=True, slots=True)
class Once:
    """One run of one tool in a fresh process; seconds by stage."""

    seconds: dict[str, float]
    nodes: int
    peak_rss_bytes: int

    @property
    def simplify_s(self) -> float:
        """Seconds of the simplification alone."""
        return self.seconds["simplify"]

    @property
    def all_s(self) -> float:
        """Seconds from load to save, without the import of the tool."""
        return sum(s for stage, s in self.seconds.items() if stage != "import")


def simplify_once(settings: Settings, tool: str, source: Path) -> Once:
    """Runs `benchmarks.simplify_once` in the interpreter that has the tool."""
    python = settings.python if tool.startswith("regraft") else settings.peers_python
    out = settings.work / "out" / tool / source.name
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(source.name + "*"):
        stale.unlink()  # tools append to a data file that exists
    done = timing.run(
        [python, "-m", "benchmarks.simplify_once", tool, str(source), str(out)],
        settings.timeout_s,
        cwd=ROOT,
    ).require_success(f"{tool} on {source.name}")
    return Once(**json.loads(done.stdout.splitlines()[-1]))


def stack_file(settings: Settings, nodes: int) -> Path:
    """Returns the path of the stack with that many nodes, written if it is not there."""
    path = settings.work / f"stack{nodes}.onnx"
    if not path.exists():
        # In a process of its own: the peak of this one is inherited by all it measures.
        timing.run(
            [settings.python, "-m", "benchmarks.blocks", str(path), "--blocks", str(SIZES[nodes])],
            settings.timeout_s,
            cwd=ROOT,
        ).require_success(f"write {path.name}")
    return path


def _against_onnxsim(settings: Settings) -> Iterator[Row]:
    source = stack_file(settings, 9_200)
    ours: list[Once] = []
    peer: list[Once] = []
    for idx in range(settings.rounds):
        for tool in ("regraft", "onnxsim") if idx % 2 else ("onnxsim", "regraft"):
            (ours if tool == "regraft" else peer).append(simplify_once(settings, tool, source))
    inner = timing.ratio([r.simplify_s for r in ours], [r.simplify_s for r in peer])
    outer = timing.ratio([r.all_s for r in ours], [r.all_s for r in peer])
    name = "9,200 nodes: canonicalize / onnxsim"
    aim = "aim 1/3"
    yield Row(name, inner.median, "x", 1.0, note=f"{inner}; {aim}", judged=inner.low)
    name = "9,200 nodes: load + canonicalize + save / the same by onnxsim"
    yield shown(name, outer.median, "x", str(outer))
    for label, runs in (("canonicalize", ours), ("onnxsim", peer)):
        seconds = timing.median([r.simplify_s for r in runs])
        total = timing.median([r.all_s for r in runs])
        note = f"{runs[0].nodes:,} nodes left; load to save {total:.2f} s"
        yield shown(f"9,200 nodes: {label}", seconds, "s", note)
    name = "9,200 nodes: left by canonicalize / left by onnxsim"
    yield at_most(name, ours[0].nodes / peer[0].nodes, 1.0, "x")


def _other_peers(settings: Settings) -> Iterator[Row]:
    source = stack_file(settings, 9_200)
    for tool in ("ort", "onnxslim", "onnxscript"):
        try:
            once = simplify_once(settings, tool, source)
        except timing.PeerFailedError as error:
            yield shown(f"9,200 nodes: {tool}", None, "s", str(error).splitlines()[0])
            continue
        yield shown(f"9,200 nodes: {tool}", once.simplify_s, "s", f"{once.nodes:,} nodes left")


def _scaling(settings: Settings) -> Iterator[Row]:
    per_node: dict[int, list[float]] = {nodes: [] for nodes in SIZES}
    for _ in range(3):
        for nodes, found in per_node.items():
            once = simplify_once(settings, "regraft", stack_file(settings, nodes))
            found.append(once.simplify_s / nodes * 1e6)
    for nodes, found in per_node.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        yield shown(f"{nodes:,} nodes: canonicalize", timing.median(found), "µs/node", spread)
    growth = timing.ratio(per_node[92_000], per_node[9_200])
    name = "canonicalize per node: 92,000 / 9,200"
    yield Row(name, growth.median, "x", 1.3, note=str(growth), judged=growth.low)


def _large_peer(settings: Settings) -> Iterator[Row]:
    try:
        once = simplify_once(settings, "onnxsim", stack_file(settings, 92_000))
    except timing.PeerFailedError as error:
        yield shown("92,000 nodes: onnxsim", None, "s", str(error).splitlines()[0])
        return
    yield shown("92,000 nodes: onnxsim", once.simplify_s, "s", f"{once.nodes:,} nodes left")


MEASUREMENTS = (
    Measurement("simplify", "canonicalize against onnxsim on 9,200 nodes", _against_onnxsim),
    Measurement("simplify-peers", "the other peers on 9,200 nodes", _other_peers),
    Measurement("simplify-scaling", "time per node at 920, 9,200 and 92,000", _scaling),
    Measurement("simplify-large-peer", "onnxsim on 92,000 nodes", _large_peer),
)
