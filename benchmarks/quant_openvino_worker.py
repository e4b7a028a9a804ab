"""Quantizes and times the encoder in OpenVINO; runs where `make openvino` installed it.

`python quant_openvino_worker.py FOLDER` reads what `quant_encoder_data` keeps there, writes
`openvino.npy` and prints one JSON line.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov

SHAPES = ((1, 16), (1, 128), (8, 128))
_CALIBRATION = 128
_ROUNDS = 9
_TURN_TOKENS = 1024


def _feed(ids: Sequence[int]) -> dict[str, Any]:
    row = np.array([ids], np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row)}


def _compiled(model: Any, threads: int) -> Any:
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return ov.Core().compile_model(model, "CPU", options).create_infer_request()


def _speed(plain: Any, small: Any, batch: int, length: int) -> float:
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    repeats = max(2, _TURN_TOKENS // ids.size)
    ratios = []
    for request in (plain, small):
        request.infer(feed)
    for _ in range(_ROUNDS):
        seconds = []
        for request in (plain, small):
            start = time.process_time()
            for _ in range(repeats):
                request.infer(feed)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


def main() -> int:
    folder = Path(sys.argv[1])
    texts = json.loads((folder / "texts.json").read_text())
    plain = ov.Core().read_model(folder / "encoder.onnx")
    dataset = nncf.Dataset([_feed(ids) for ids in texts["calibration"][:_CALIBRATION]])
    small = nncf.quantize(
        plain, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION
    )
    request = _compiled(small, 1)
    found = [request.infer(_feed(ids))["embedding"] for ids in texts["test"]]
    np.save(folder / "openvino.npy", np.concatenate(found))
    speeds = {}
    for threads in (1, 2):
        pair = _compiled(plain, threads), _compiled(small, threads)
        speeds[threads] = [_speed(*pair, *shape) for shape in SHAPES]
    versions = f"openvino {ov.__version__}, nncf {nncf.__version__}"
    print(json.dumps({"speeds": speeds, "versions": versions}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
