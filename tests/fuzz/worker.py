"""Runs fuzz cases and prints one JSON line per case, so that a crash names its case.

`python -m tests.fuzz.worker graphs FIRST LAST` or `… flips FIRST LAST MODEL…`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

import regraft
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx.load import import_model
from regraft.frontends.onnx.reader import parse_proto
from regraft.ir.errors import RegraftError, UnsupportedError
from regraft.passes.check.compare import compare_outputs
from regraft.pipelines import DEFAULT_PASSES
from tests.fuzz.graphs import SIZES, random_inputs, random_model


def say(**entry: Any) -> None:
    """Prints one JSON line at once."""
    print(json.dumps(entry), file=sys.__stdout__, flush=True)


def compare(
    source: onnx.ModelProto | bytes, ours: onnx.ModelProto, samples: list[Mapping[str, Any]]
) -> tuple[str, str]:
    """Returns (outcome, detail): equal, wrong, or unproven when the runtime refuses the source.

    The reference is the runtime with its optimizations, or without them where they break the
    source; the difference between the two is the noise floor. Ours runs as the reference does.
    """
    runners = {optimize: _runner(source, optimize) for optimize in (True, False)}
    results: dict[bool, OrtRunner] = {}
    proven = False
    for inputs in samples:
        runs = {
            optimize: outputs
            for optimize, runner in runners.items()
            if runner is not None and (outputs := _outputs(runner, inputs)) is not None
        }
        if not runs:
            continue
        optimize, expected = next(iter(runs.items()))
        if optimize not in results:
            results[optimize] = OrtRunner(ours, optimize=optimize)
        for diff in compare_outputs(expected, results[optimize](inputs), plain=runs.get(False)):
            if not diff.ok:
                return "wrong", f"{diff.name}: {diff.reason}"
        proven = True
    return ("equal", "") if proven else ("unproven", "the runtime does not run it")


def _runner(model: onnx.ModelProto | bytes, optimize: bool) -> OrtRunner | None:
    try:
        return OrtRunner(model, optimize=optimize)
    except UnsupportedError:
        return None


def _outputs(runner: OrtRunner, inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    try:
        return runner(inputs)
    except UnsupportedError:
        return None


def run_graph(seed: int) -> tuple[str, str]:
    """Converts the random model of a seed and compares it at every binding."""
    model = random_model(seed)
    module = regraft.load(model)
    regraft.apply(module, DEFAULT_PASSES, check="off")
    return compare(model, to_proto(module), [random_inputs(seed, sizes) for sizes in SIZES])


def flip(data: bytes, seed: int) -> bytes:
    """Returns the bytes with one to four of them changed; structure is hit as often as weights."""
    rng = random.Random(seed)
    edited = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        if rng.random() < 0.5:
            place = rng.randrange(min(len(edited), 1 << 14))
        elif rng.random() < 0.5:
            place = len(edited) - 1 - rng.randrange(min(len(edited), 1 << 14))
        else:
            place = rng.randrange(len(edited))
        edited[place] = (
            rng.randrange(256) if rng.random() < 0.5 else edited[place] ^ (1 << rng.randrange(8))
        )
    if rng.random() < 0.05:
        del edited[rng.randrange(len(edited)) :]
    return bytes(edited)


def run_flip(seed: int, path: Path) -> tuple[str, str]:
    """Loads a damaged copy of a model: a clear refusal, or a result like the runtime's.

    A refusal is wrong where the runtime takes the file and runs it.
    """
    data = flip(path.read_bytes(), seed)
    try:
        module = import_model(parse_proto(data), None)
        regraft.apply(module, DEFAULT_PASSES, check="off")
        ours = to_proto(module)
    except RegraftError as error:
        refusal = error.message[:160]
        say(case=seed, stage="runtime")
        if _runs(data):
            return "wrongly refused", refusal
        return "refused", refusal
    say(case=seed, stage="runtime")  # a crash from here on is the runtime's own
    samples = _inputs_of(data)
    return compare(data, ours, [samples]) if samples else ("unproven", "no sample")


def _runs(data: bytes) -> bool:
    runner = _runner(data, optimize=True)
    inputs = _inputs_of(data)
    return runner is not None and bool(inputs) and _outputs(runner, inputs) is not None


def _inputs_of(data: bytes) -> dict[str, Any]:
    """Returns zeros and small numbers for the declared inputs, unknown sizes 2."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return {}
    constants = {tensor.name for tensor in proto.graph.initializer}
    made: dict[str, Any] = {}
    for info in proto.graph.input:
        if info.name in constants:
            continue
        tensor = info.type.tensor_type
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        except (KeyError, ValueError):
            return {}
        shape = [d.dim_value if 0 < d.dim_value <= 4096 else 2 for d in tensor.shape.dim]
        if int(np.prod(shape, dtype=np.int64)) > 1 << 22:
            return {}
        made[info.name] = np.ones(shape).astype(dtype)
    return made


def main() -> None:
    """Runs the cases of the command line."""
    kind, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    models = [Path(name) for name in sys.argv[4:]]
    sys.stdout = sys.stderr  # ONNX Runtime prints there when a name is not UTF-8
    for seed in range(first, last):
        say(case=seed, stage="start")
        try:
            if kind == "graphs":
                outcome, detail = run_graph(seed)
            else:
                outcome, detail = run_flip(seed, models[seed % len(models)])
        except Exception as error:  # the outcome that the fuzzer looks for
            outcome, detail = "error", f"{type(error).__name__}: {error}"[:300]
        say(case=seed, stage="done", outcome=outcome, detail=detail)


if __name__ == "__main__":
    main()
