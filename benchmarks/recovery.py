"""Measures what recovery and folders of transformers promise; exits 1 when a bar is missed.

`python -m benchmarks.recovery [--only NAME] [--list]` prints a table and writes
`benchmarks/results/recovery-<cpu>.json`. It needs the extras `torch` and `hf`, and the packages
that `make recovery-models` installs. The minutes are those of two quiet cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks import recovery_decode, recovery_hf, recovery_losses
from benchmarks.measure import ROOT, Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.suite import run

_BEFORE = "before "  # as the worker names weights before training

STEPS = 2200
_SHORT = 8
_STOPPED_AT = 5
_THREADS = 2
_MINUTE = 60.0


def _worker(settings: Settings, *arguments: str, processes: int = 1) -> dict[str, Any]:
    """Returns what a run printed; {} when it was interrupted as asked for.

    Raises:
        RuntimeError: When it failed.
    """
    launch = [settings.python, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    done = subprocess.run(
        [*launch, "benchmarks.recovery_worker", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={
            **os.environ, "OMP_NUM_THREADS": str(_THREADS // processes),
            "OMP_WAIT_POLICY": "PASSIVE",  # a waiting thread takes no time of a core
        },
    )  # fmt: skip
    if "--stop-at" in arguments and "KeyboardInterrupt" in done.stderr:
        return {}
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _recovered(settings: Settings) -> Iterator[Row]:
    found = _worker(settings, "--steps", str(STEPS))
    lost = 1 - found["before"]
    yield shown(
        "cosine lost without layer 2 of 6", lost, "", f"worst text {1 - found['before_worst']:.3g}"
    )
    yield shown(
        "cosine lost after recovery", 1 - found["after"], "",
        f"worst text {1 - found['after_worst']:.3g}",
    )  # fmt: skip
    regained = 100 * (found["after"] - found["before"]) / lost
    yield at_least(
        "regained on texts not trained on", regained, 60.0, "%",
        f"{found['steps']} steps on {found['tokens']} tokens, {found['texts']} texts",
    )  # fmt: skip
    # other programs on the cores do not count: 15 minutes of two quiet ones are 30 of CPU time
    yield at_most(
        "CPU time of it", found["cpu_seconds"] / _MINUTE, 15.0 * _THREADS, "min",
        f"{found['seconds'] / _MINUTE:.1f} min in {found['threads']} threads beside other programs",
    )  # fmt: skip


def _resumed(settings: Settings) -> Iterator[Row]:
    steps = ("--steps", str(_SHORT))
    whole = _worker(settings, *steps)
    with tempfile.TemporaryDirectory() as folder:
        _worker(settings, *steps, "--folder", folder, "--stop-at", str(_STOPPED_AT))
        files = [path.name for path in Path(folder).rglob("*") if path.is_file()]
        yield held("an interrupted run leaves its checkpoint", files == ["checkpoint.pt"])
        again = _worker(settings, *steps, "--folder", folder)
    yield held(
        "resumed weights are bit-identical", again["digest"] == whole["digest"],
        f"interrupted in step {_STOPPED_AT + 1} of {_SHORT}",
    )  # fmt: skip


def _shared(settings: Settings) -> Iterator[Row]:
    weights = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            path = Path(folder) / f"{processes}.safetensors"
            options = ("--steps", str(_SHORT), "--batches", "2", "--precision", "fp32")
            _worker(settings, *options, "--weights", str(path), processes=processes)
            weights.append(load_file(path))
    one, two = weights
    names = [name for name in one if not name.startswith(_BEFORE)]
    moved = max(float(np.abs(one[name] - one[_BEFORE + name]).max()) for name in names)
    apart = max(float(np.abs(one[name] - two[name]).max()) for name in names)
    # sums in another order; Adam amplifies them where gradients vanish
    yield at_most(
        "2 gloo processes against 1, of the largest change", 100 * apart / moved, 5.0, "%",
        f"{len(names)} tensors, largest change {moved:.2g}",
    )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("recovered", "layer 2 of 6 dropped, recovered by distillation", _recovered),
    Measurement("resumed", "an interrupted run ends at the same bits", _resumed),
    Measurement("shared", "two processes train like one", _shared),
    *recovery_losses.MEASUREMENTS,
    *recovery_hf.MEASUREMENTS,
    *recovery_decode.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("recovery", __doc__, MEASUREMENTS))
