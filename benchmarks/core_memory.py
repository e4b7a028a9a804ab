"""Memory and time on models larger than the memory they may take."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import timing
from benchmarks.core_simplify import simplify_once
from benchmarks.measure import GIB, MB, ROOT, Measurement, Row, Settings, at_most, held, shown

SIX_GB = 6_000 * MB
TWO_GIB = int(2.1 * GIB)
RSS_BAR_BYTES = 1_000 * MB
ROUNDS = 5


def big_file(settings: Settings, min_bytes: int) -> Path:
    """Returns the path of a model with that many bytes of weights, written if it is not there."""
    path = settings.work / f"big{min_bytes // MB}" / "model.onnx"
    timing.run(
        [settings.python, "-m", "benchmarks.big", str(path), "--bytes", str(min_bytes)],
        timeout_s=600,
        cwd=ROOT,
    ).require_success(f"write {path}")
    return path


def _convert(settings: Settings, source: Path, *flags: str) -> tuple[timing.Finished, Path]:
    out = settings.work / "out" / "regraft" / source.parent.name
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    regraft = str(Path(settings.python).with_name("regraft"))
    done = timing.run(
        [regraft, "convert", str(source), "-o", str(out), *flags], settings.timeout_s
    ).require_success(f"regraft convert {source.parent.name}")
    return done, out


def _verified(out: Path) -> str:
    """Returns what the report says was verified, pass by pass."""
    report = json.loads((out / "report.json").read_text())
    return ", ".join(f"{row['name']}: {row['verified']}" for row in report["passes"])


def _six_gb(settings: Settings) -> Iterator[Row]:
    source = big_file(settings, SIX_GB)
    done, out = _convert(settings, source, "--max-memory", "900MB")
    name = "6 GB of weights: peak resident memory of convert, checks on"
    yield Row(
        name, done.peak_rss_bytes / MB, "MB", RSS_BAR_BYTES / MB, note=f"verified {_verified(out)}"
    )
    yield shown("6 GB of weights: time of convert", done.wall_s, "s")
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    size = source.with_name("model.onnx.data").stat().st_size
    yield held("6 GB of weights: all of them written", written >= 0.99 * size, f"{written:,} bytes")
    shutil.rmtree(out)


@dataclass(frozen=True, slots=True)
class _Once:
    """One run of one tool."""

    wall_s: float
    peak_rss_bytes: int
    verified: str = ""


def _ours_once(settings: Settings, source: Path) -> _Once:
    done, out = _convert(settings, source)
    verified = _verified(out)
    shutil.rmtree(out)
    return _Once(done.wall_s, done.peak_rss_bytes, verified)


def _peer_once(settings: Settings, source: Path) -> _Once:
    # from its import to its save: its interpreter's own start is not counted
    once = simplify_once(settings, "onnxscript", source)
    for written in (settings.work / "out" / "onnxscript").glob(source.name + "*"):
        written.unlink()
    return _Once(sum(once.seconds.values()), once.peak_rss_bytes)


def _copy_once(settings: Settings, source: Path) -> _Once:
    """Runs the physical limit: the weights are read once and written once."""
    data, copy = source.with_name("model.onnx.data"), settings.work / "out" / "copy.data"
    copy.parent.mkdir(parents=True, exist_ok=True)
    code = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
    done = timing.run([sys.executable, "-c", code, str(data), str(copy)], settings.timeout_s)
    done.require_success("copy of the weights")
    copy.unlink()
    return _Once(done.wall_s, done.peak_rss_bytes)


def _even_start(source: Path) -> None:
    """Makes every run begin alike: nothing waits to be written, and the weights are cached.

    Every run also removes what it wrote. On virtual machines, memory that the guest just gave back
    is several times faster to fill than memory that the host has yet to provide, so whoever ran
    after a removal would win, and whoever ran beside the other's output would lose.
    """
    os.sync()
    with source.with_name("model.onnx.data").open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def _two_gib(settings: Settings) -> Iterator[Row]:
    source = big_file(settings, TWO_GIB)
    tools = {"ours": _ours_once, "peer": _peer_once, "copy": _copy_once}
    runs: dict[str, list[_Once]] = {name: [] for name in tools}
    for idx in range(ROUNDS + 1):
        for name in list(tools)[:: 1 if idx % 2 else -1]:
            _even_start(source)
            once = tools[name](settings, source)
            if idx:  # the first round warms up
                runs[name].append(once)
    seconds = {name: [run.wall_s for run in found] for name, found in runs.items()}
    peaks = {name: [run.peak_rss_bytes / GIB for run in found] for name, found in runs.items()}
    name = "2.1 GiB: full convert / onnxscript simplify + save"
    time_ratio = timing.ratio(seconds["ours"], seconds["peer"])
    note = f"{_spread(seconds['ours'])} / {_spread(seconds['peer'])} s; {runs['ours'][0].verified}"
    yield at_most(f"{name}, time", time_ratio.median, 1.5, "x", f"{time_ratio}; {note}")
    memory_ratio = timing.ratio(peaks["ours"], peaks["peer"])
    memory = f"{timing.median(peaks['ours']):.3f} GiB / {timing.median(peaks['peer']):.3f} GiB"
    yield at_most(f"{name}, peak memory", memory_ratio.median, 1.5, "x", memory)
    name = "2.1 GiB: a plain copy of the weights"
    yield shown(name, timing.median(seconds["copy"]), "s", _spread(seconds["copy"]))


def _spread(seconds: list[float]) -> str:
    return f"{timing.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


MEASUREMENTS = (
    Measurement("memory-6gb", "6 GB of weights in less than 1 GB of memory", _six_gb),
    Measurement("memory-2gib", "2.1 GiB against onnxscript's simplify + save", _two_gib),
)
