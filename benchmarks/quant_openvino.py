"""The same encoder as int8 by NNCF in OpenVINO, in an environment of its own (`make openvino`)."""

import json
import subprocess
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import ROOT, Measurement, Row, Settings, shown
from benchmarks.quant_encoder_data import FOLDER, SHAPES, cosines, encoder

PYTHON = ROOT / ".venv-openvino" / "bin" / "python"
_ABSENT = "skipped: `make openvino` installs openvino and nncf"


def _openvino(settings: Settings) -> Iterator[Row]:
    if not PYTHON.exists():
        yield shown("OpenVINO int8", None, "", _ABSENT)
        return
    source = encoder()
    done = subprocess.run(
        [PYTHON, ROOT / "benchmarks" / "quant_openvino_worker.py", FOLDER],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=2 * settings.timeout_s,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-2000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    close = cosines(source.reference, np.load(FOLDER / "openvino.npy"))
    note = found["versions"]
    yield shown("OpenVINO int8: cosine, mean", float(close.mean()), "", note)
    yield shown("OpenVINO int8: cosine, worst", float(close.min()), "")
    for threads, ratios in found["speeds"].items():
        for (batch, length), value in zip(SHAPES, ratios, strict=True):
            where = f"{batch}x{length}, CPU time, threads: {threads}"
            label = f"OpenVINO int8 against its fp32 at {where}"
            yield shown(label, value, "x")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("openvino", "int8 of the encoder by OpenVINO and NNCF", _openvino),
)
