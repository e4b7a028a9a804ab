"""Latency of every real model at three shapes: regraft's `ort-cpu` output against the best peer.

The peers are the original with all of ONNX Runtime's optimizations, onnxslim, onnxsim, and the
transformer optimizer where it fuses anything; all files run in one process under default session
options, one thread, interleaved. The bar: not slower than 1.03x the best peer by the favourable end
of the interval.

`python -m benchmarks.fuse_latency [--only MODEL] [--rounds N] [--fresh]` prints the table alone.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks import models, timing
from benchmarks.measure import CACHE, ROOT, Measurement, Row, Settings
from benchmarks.simplify_once import FUSING
from regraft.timing import MIN_ROUNDS, MIN_TURN_S

BAR = 1.03
PASSES = FUSING
PEERS = ("onnxslim", "onnxsim", "ort-transformers")

_LONG_TURN_S = 0.25
_LONG_ROUNDS = 21

_TEXT: tuple[models.Binding, ...] = (
    {"batch": 1, "sequence": 16},
    {"batch": 1, "sequence": 128},
    {"batch": 4, "sequence": 64},
)
_RATES: tuple[models.Binding, ...] = (
    {"batch": 1, "sr": 16000},
    {"batch": 4, "sr": 16000},
    {"batch": 1, "sr": 8000},
)
_BATCHES: tuple[models.Binding, ...] = ({"batch": 1}, {"batch": 4}, {"batch": 16})

SHAPES: dict[str, tuple[models.Binding, ...]] = {
    "minilm-l3": _TEXT,
    "minilm-int8": _TEXT,
    "ppocr-det": (
        {"batch": 1, "height": 160, "width": 160},
        {"batch": 1, "height": 320, "width": 320},
        {"batch": 2, "height": 192, "width": 320},
    ),
    "ppocr-rec": (
        {"batch": 1, "height": 48, "width": 120},
        {"batch": 1, "height": 48, "width": 320},
        {"batch": 3, "height": 48, "width": 160},
    ),
    "ppocr-cls": (
        {"batch": 1, "height": 48, "width": 192},
        {"batch": 1, "height": 48, "width": 96},
        {"batch": 6, "height": 48, "width": 192},
    ),
    "silero_vad": _RATES,
    "silero_vad_16k_op15": _BATCHES,
    "silero_vad_16k_sequence": ({"sequence_length": 1}, {"sequence_length": 8},
                                {"sequence_length": 31}),
    "silero_vad_half": _BATCHES,
    "silero_vad_op18_ifless": _RATES,
    "silero_vad_openvino_16k": ({"batch": 1},),  # its shapes are fixed
    "magika": ({"batch": 1}, {"batch": 2}, {"batch": 8}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One model at one shape.

    Attributes:
        model: Name in the core set.
        binding: The sizes.
        medians_ms: Median latency by variant.
        best: The fastest peer.
        ratio: regraft / best peer.
        note: Peers that failed or do not apply.
    """

    model: str
    binding: models.Binding
    medians_ms: dict[str, float]
    best: str
    ratio: timing.Ratio
    note: str


def prepare(settings: Settings, model: models.RealModel, tool: str, *, fresh: bool) -> Path | str:
    """Returns the file that a tool makes of a model, or why it makes none.

    Files of the peers are kept between runs, until a peer has another version.
    """
    folder = settings.work / "latency" / "-".join([tool, *_version(settings, tool)])
    folder.mkdir(parents=True, exist_ok=True)
    out, failed = folder / f"{model.name}.onnx", folder / f"{model.name}.failed"
    if tool != "regraft" and not fresh:
        if out.exists():
            return out
        if failed.exists():
            return failed.read_text()
    for stale in (*folder.glob(f"{model.name}.onnx*"), failed):
        stale.unlink(missing_ok=True)
    source = models.find(model)
    if tool == "regraft":
        argv = [settings.python, "-c", "from regraft.cli.main import main; main()", "convert",
                str(source), "-o", str(out), "--passes", PASSES, "--no-check", "-q"]  # fmt: skip
    else:
        link = settings.work / "latency" / f"{model.name}.onnx"  # the tool sees the model's name
        link.unlink(missing_ok=True)
        link.symlink_to(source)
        python = settings.peers_python
        argv = [python, "-m", "benchmarks.simplify_once", tool, str(link), str(out)]
    done = timing.run(argv, settings.timeout_s, cwd=ROOT)
    if done.returncode == 0 and out.exists():
        return out
    lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    reason = lines[-1][:120]
    failed.write_text(reason)
    return reason


def _version(settings: Settings, tool: str) -> list[str]:
    """Returns the version of a peer, read off the interpreter's packages; [] for regraft."""
    package = "onnxruntime" if tool.startswith("ort-") else tool
    packages = Path(settings.peers_python).parent.parent.glob("lib/python*/site-packages")
    return [
        found.name.removesuffix(".dist-info").removeprefix(f"{package}-")
        for folder in packages
        for found in folder.glob(f"{package}-*.dist-info")
    ]


def session(path: Path) -> ort.InferenceSession:
    """Returns a session with default options but for the number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(
    settings: Settings, model: models.RealModel, *, rounds: int, fresh: bool
) -> Iterator[Cell]:
    """Measures one model at its shapes; every variant is loaded once."""
    files: dict[str, Path | str] = {"original": models.find(model)}
    for tool in PEERS:
        files[tool] = prepare(settings, model, tool, fresh=fresh)
    ours = prepare(settings, model, "regraft", fresh=True)
    if isinstance(ours, str):
        raise RuntimeError(f"regraft on {model.name}: {ours}")
    notes = [f"{tool}: {reason}" for tool, reason in files.items() if isinstance(reason, str)]
    sessions = {tool: session(path) for tool, path in files.items() if isinstance(path, Path)}
    sessions["regraft"] = session(ours)
    for idx, binding in enumerate(SHAPES[model.name]):
        sample = model.build(np.random.default_rng([0, idx]), binding)
        runnable = {}
        for tool, loaded in sessions.items():
            try:
                loaded.run(None, sample)
            except Exception as error:  # the runtime's errors share no base class
                if tool in ("original", "regraft"):
                    raise
                notes.append(f"{tool} does not run at {dict(binding)}: {str(error)[:60]}")
                continue
            runnable[tool] = loaded
        yield _cell(model.name, binding, runnable, sample, rounds, "; ".join(notes))


def _cell(
    name: str,
    binding: models.Binding,
    sessions: dict[str, ort.InferenceSession],
    sample: models.Sample,
    rounds: int,
    note: str,
) -> Cell:
    def call(loaded: ort.InferenceSession) -> Callable[[], object]:
        return lambda: loaded.run(None, sample)

    calls = [call(loaded) for loaded in sessions.values()]
    trial = timing.interleaved(calls, 2)
    if min(min(times) for times in trial) > _LONG_TURN_S:
        rounds = min(rounds, _LONG_ROUNDS)
    seconds = dict(
        zip(sessions, timing.interleaved(calls, rounds, min_turn_s=MIN_TURN_S), strict=True)
    )
    medians = {tool: timing.median(times) * 1e3 for tool, times in seconds.items()}
    best = min((tool for tool in medians if tool != "regraft"), key=medians.__getitem__)
    ratio = timing.ratio(seconds["regraft"], seconds[best])
    return Cell(name, binding, medians, best, ratio, note)


def shape_text(binding: models.Binding) -> str:
    """Returns sizes as `1x16`."""
    return "x".join(str(size) for size in binding.values())


def table_of(cells: Sequence[Cell]) -> Table:
    """Returns the table that the README shows."""
    tools = ("original", *PEERS, "regraft")
    table = Table("model", "shape", *(f"{t} ms" for t in tools), "/ best", "interval", "met")
    for cell in cells:
        ratio = cell.ratio
        table.add_row(
            cell.model,
            shape_text(cell.binding),
            *(f"{cell.medians_ms[t]:.3f}" if t in cell.medians_ms else "-" for t in tools),
            f"{ratio.median:.3f} ({cell.best})",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            "yes" if ratio.low <= BAR else "NO",
        )
    return table


def _rows(settings: Settings) -> Iterator[Row]:
    fastest = 0
    for model in models.CORE:
        for cell in measure(settings, model, rounds=MIN_ROUNDS, fresh=False):
            fastest += cell.ratio.high < 1
            name = f"{cell.model} at {shape_text(cell.binding)}: ort-cpu / best peer"
            note = f"{cell.best}; {cell.ratio}" + (f"; {cell.note}" if cell.note else "")
            yield Row(name, cell.ratio.median, "x", BAR, note=note, judged=cell.ratio.low)
    yield Row("shapes at which ort-cpu is faster than every peer", fastest, "", 1, "at least")


MEASUREMENTS = (
    Measurement("latency", "ort-cpu output against the best peer on the core set", _rows),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuse_latency", description=__doc__)
    parser.add_argument("--only", action="append", metavar="MODEL", help="repeatable")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS)
    parser.add_argument("--fresh", action="store_true", help="let the peers work again")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"))
    parser.add_argument("--json", type=Path, help="write the cells here too")
    options = parser.parse_args()
    settings = Settings(sys.executable, options.peers_python, 300.0, options.rounds, CACHE)
    cells: list[Cell] = []
    for model in models.CORE:
        if options.only and model.name not in options.only:
            continue
        print(f"{model.name} …", file=sys.stderr, flush=True)
        cells.extend(measure(settings, model, rounds=options.rounds, fresh=options.fresh))
    Console(width=None if sys.stdout.isatty() else 200).print(table_of(cells))
    for note in dict.fromkeys(f"{cell.model}: {cell.note}" for cell in cells if cell.note):
        print(note)
    if options.json is not None:
        rows = [
            {
                "model": c.model, "binding": dict(c.binding), "ms": c.medians_ms, "best": c.best,
                "ratio": c.ratio.median, "interval": [c.ratio.low, c.ratio.high],
            }
            for c in cells
        ]  # fmt: skip
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(cell.ratio.low <= BAR for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
