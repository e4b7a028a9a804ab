"""Memory and time on models larger than the memory they may take."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing
from benchmarks.core_simplify import simplify_once
from benchmarks.measure import GIB, MB, ROOT, Measurement, Row, Settings, at_most, held, shown

SIX_GB = 6_000 * MB
TWO_GIB = int(2.1 * GIB)
RSS_BAR_BYTES = 1_000 * MB
ROUNDS = 3


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


def _two_gib(settings: Settings) -> Iterator[Row]:
    source = big_file(settings, TWO_GIB)
    ours_s, peer_s, ours_rss, peer_rss = [], [], [], []
    note = ""
    for _ in range(ROUNDS):
        os.sync()  # nobody pays for the pages that the one before left to be written
        done, out = _convert(settings, source)
        note = f"verified {_verified(out)}"
        shutil.rmtree(out)
        ours_s.append(done.wall_s)
        ours_rss.append(done.peak_rss_bytes / GIB)
        os.sync()
        once = simplify_once(settings, "onnxscript", source)
        peer_s.append(sum(once.seconds.values()))
        peer_rss.append(once.peak_rss_bytes / GIB)
    time_ratio = timing.ratio(ours_s, peer_s)
    memory_ratio = timing.ratio(ours_rss, peer_rss)
    name = "2.1 GiB: full convert / onnxscript simplify + save"
    seconds = f"{timing.median(ours_s):.1f} s / {timing.median(peer_s):.1f} s; {note}"
    yield Row(f"{name}, time", time_ratio.median, "x", 1.5, note=seconds, judged=time_ratio.low)
    memory = f"{timing.median(ours_rss):.2f} GiB / {timing.median(peer_rss):.2f} GiB"
    yield at_most(f"{name}, peak memory", memory_ratio.median, 1.5, "x", memory)
    yield from _copy_limit(settings, source)


def _copy_limit(settings: Settings, source: Path) -> Iterator[Row]:
    # The physical limit: the weights have to be read once and written once.
    data, copy = source.with_name("model.onnx.data"), settings.work / "out" / "copy.data"
    code = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
    os.sync()
    done = timing.run([sys.executable, "-c", code, str(data), str(copy)], settings.timeout_s)
    done.require_success("copy of the weights")
    copy.unlink()
    yield shown("2.1 GiB: a plain copy of the weights", done.wall_s, "s")


MEASUREMENTS = (
    Measurement("memory-6gb", "6 GB of weights in less than 1 GB of memory", _six_gb),
    Measurement("memory-2gib", "2.1 GiB against onnxscript's simplify + save", _two_gib),
)
