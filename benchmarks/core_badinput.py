"""Bad input: every broken file is one error with exit code 2, nothing written, memory bounded.

The broken models are those of `tests.robustness.bad_models`, the odd but runnable ones those of
`tests.robustness.odd_models`. Every case runs the command line in a process of its own.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.measure import MB, Measurement, Row, Settings, held
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import UnsupportedError
from regraft.passes.check.compare import compare_outputs
from tests.robustness.bad_models import BAD_MODELS
from tests.robustness.build import linear
from tests.robustness.odd_models import ODD_MODELS

MAX_RSS_BYTES = 400 * MB
"""The command line with its packages takes about 100 MB; a lying size must not be allocated."""


def run(settings: Settings, args: Sequence[str], folder: Path) -> tuple[int, str, int]:
    """Runs `regraft`; returns exit code, stderr, and peak resident bytes of the process."""
    code = "from regraft.cli import main; main()"
    child = subprocess.Popen(
        [settings.python, "-W", "ignore", "-c", code, *args], cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if child.stderr is None:
        raise AssertionError("the process has no stderr")
    text = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    return child.returncode, text, usage.ru_maxrss * 1024


def _listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _refused(
    settings: Settings, name: str, args: Sequence[str], folder: Path, code: int = 2
) -> Row:
    before = _listing(folder)
    exit_code, text, rss = run(settings, args, folder)
    problems = []
    if exit_code != 2:
        problems.append(f"exit code {exit_code}")
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    if len(errors) != 1 or "Traceback" in text:
        problems.append(f"{len(errors)} error lines")
    if _listing(folder) != before:
        problems.append("something was written")
    if rss > MAX_RSS_BYTES:
        problems.append(f"{rss // MB} MB")
    detail = errors[0][7:120] if errors else text[-120:]
    return held(f"{name}: refused", not problems, "; ".join([*problems, detail]))


def broken_files(settings: Settings) -> Iterator[Row]:
    """Yields one row per broken model."""
    for bad in BAD_MODELS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            folder.mkdir()
            path = bad.build(folder)
            yield _refused(settings, bad.name, ["convert", str(path), "-o", "out"], folder)


def bad_options(settings: Settings) -> Iterator[Row]:
    """Yields rows for samples and options that do not fit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.onnx").write_bytes(linear().SerializeToString())
        np.savez(folder / "shape.npz", x=np.zeros((2, 5), np.float32))
        np.savez(folder / "dtype.npz", x=np.zeros((2, 4), np.float64))
        np.savez(folder / "name.npz", z=np.zeros((2, 4), np.float32))
        np.savez(folder / "pickle.npz", x=np.array([{}], object))
        (folder / "text.npz").write_text("no archive")
        convert = ["convert", "m.onnx", "-o", "out"]
        cases = {
            "sample of a wrong shape": [*convert, "--inputs", "shape.npz"],
            "sample of a wrong element type": [*convert, "--inputs", "dtype.npz"],
            "sample of an unknown input": [*convert, "--inputs", "name.npz"],
            "pickled sample": [*convert, "--inputs", "pickle.npz"],
            "sample file that is no archive": [*convert, "--inputs", "text.npz"],
            "unknown option": [*convert, "--pases", "canonicalize"],
            "unknown pass": [*convert, "--passes", "canonicalise"],
            "unknown option of a pass": [*convert, "--passes", "canonicalize{max-fold=1}"],
            "unknown target": [*convert, "--target", "ort"],
            "opset out of range": [*convert, "--opset", "99"],
            "unknown verb": ["covert", "m.onnx"],
            "unknown size to freeze": [*convert, "--freeze", "nosize=1"],
            "missing source": ["convert", "absent.onnx", "-o", "out"],
            "missing folder of the output": ["convert", "m.onnx", "-o", "a/b/out"],
        }
        for label, args in cases.items():
            yield _refused(settings, label, args, folder)
        (folder / "out").mkdir()
        yield _refused(settings, "output exists", convert, folder)


def odd_models(settings: Settings) -> Iterator[Row]:
    """Yields one row per odd model that ONNX Runtime runs: taken, with equal outputs."""
    for odd in ODD_MODELS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            proto = odd.build()
            (folder / "m.onnx").write_bytes(proto.SerializeToString())
            code, text, _ = run(settings, ["convert", "m.onnx", "-o", "o.onnx"], folder)
            if code:
                yield held(f"{odd.name}: taken", False, text.strip()[:160])
                continue
            try:
                reference = OrtRunner(proto)
            except UnsupportedError:
                # such as two nodes of one name: we repair what the runtime refuses
                OrtRunner(folder / "o.onnx")
                yield held(f"{odd.name}: taken, and mended for the runtime", True)
                continue
            ours = OrtRunner(folder / "o.onnx")
            wrong = [
                f"`{diff.name}`: {diff.reason}"
                for diff in compare_outputs(reference(odd.inputs), ours(odd.inputs))
                if not diff.ok
            ]
            yield held(f"{odd.name}: taken, equal outputs", not wrong, "; ".join(wrong))


def full_disk(settings: Settings) -> Iterator[Row]:
    """Yields a row for a disk that fills up: a limit on file size stands in for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = models.find(models.named("ppocr-cls"))
        before = _listing(folder)
        code = (
            "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)); "
            "from regraft.cli import main; main()"
        )
        done = subprocess.run(
            [settings.python, "-W", "ignore", "-c", code, "convert", str(path), "-o", "out"],
            cwd=folder, capture_output=True, text=True, timeout=settings.timeout_s, check=False,
        )  # fmt: skip
        clean = _listing(folder) == before and done.stderr.count("error:") == 1
        note = f"exit code {done.returncode}: {done.stderr.strip()[:100]}"
        yield held("full disk: one error, nothing written", clean and done.returncode == 1, note)


def interrupted(settings: Settings) -> Iterator[Row]:
    """Yields rows for Ctrl-C at several moments: the folder is as before, an old output kept."""
    path = models.find(models.named("minilm-l3"))
    code = "from regraft.cli import main; main()"
    for delay_s in (0.3, 0.8, 1.5):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "out").mkdir()
            (folder / "out" / "old").write_text("kept")
            child = subprocess.Popen(
                [settings.python, "-W", "ignore", "-c", code, "convert", str(path), "-o", "out",
                 "--force"],
                cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            time.sleep(delay_s)
            child.send_signal(signal.SIGINT)
            _, text = child.communicate(timeout=settings.timeout_s)
            listing = _listing(folder)
            finished = child.returncode == 0 and "out/model.onnx" in listing
            kept = listing == ["out", "out/old"]
            note = f"exit code {child.returncode}: {text.strip()[:80]}"
            yield held(f"Ctrl-C after {delay_s} s: all or nothing", finished or kept, note)


def measure(settings: Settings) -> Iterator[Row]:
    """Yields all rows."""
    yield from broken_files(settings)
    yield from bad_options(settings)
    yield from odd_models(settings)
    yield from full_disk(settings)
    yield from interrupted(settings)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("bad-input", "broken files, wrong options, odd models, full disk, Ctrl-C", measure),
)
