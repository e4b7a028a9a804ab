"""Runs fuzz cases and prints one JSON line per case, so that a crash names its case.

`python -m tests.fuzz.worker graphs FIRST LAST` or `… flips FIRST LAST MODEL…`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

import regraft
from benchmarks.models import RealModel, find, named
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx.load import import_model
from regraft.frontends.onnx.reader import parse_proto
from regraft.ir.errors import RegraftError, UnsupportedError
from regraft.ir.module import Module
from regraft.passes.check.module_check import check_module
from regraft.passes.check.runners import Runner, lazily
from regraft.passes.check.samples import Sample
from regraft.passes.check.second_look import second_look
from regraft.pipelines import DEFAULT_PASSES
from tests.fuzz.graphs import SIZES, random_inputs, random_model


def say(**entry: Any) -> None:
    """Prints one JSON line at once."""
    print(json.dumps(entry), file=sys.__stdout__, flush=True)


def compare(
    source: onnx.ModelProto | bytes,
    result: Module,
    ours: onnx.ModelProto,
    samples: list[Mapping[str, Any]],
) -> tuple[str, str]:
    """Compares the source with a result as it was written; returns (outcome, detail).

    - `equal`: within 1e-5 of the largest element, or four times what the runtime's optimizations
      change in the source;
    - `noise`: further apart, and right in f64, where the source loses digits or overflows;
    - `wrong`;
    - `unproven`: the runtime refuses the source.

    The reference is the runtime with its optimizations, or without them where they break the
    source. Ours runs as the reference does.
    """
    reference = {optimize: lazily_run(source, optimize) for optimize in (True, False)}
    candidates: dict[bool, OrtRunner] = {}
    outcome = "unproven"
    for inputs in samples:
        runs = ((optimize, run(inputs)) for optimize, run in reference.items())
        optimize, expected = next((found for found in runs if found[1]), (True, {}))
        if not expected:
            continue
        if optimize not in candidates:
            candidates[optimize] = OrtRunner(ours, optimize=optimize)
        check = partial(
            check_module, lambda inputs, expected=expected: expected, reference[False],
            candidates[optimize], [Sample(inputs, {}, "given")],
        )  # fmt: skip
        report = check()
        if report.ok:
            outcome = "equal" if outcome == "unproven" else outcome
            continue
        proto = parse_proto(source) if isinstance(source, bytes) else source
        report = check(look=second_look(import_model(proto, None), result))
        outcome = "noise"
        if not report.ok:
            worst = next(diff for diff in report.outputs if not diff.ok)
            return "wrong", f"{worst.name}: {worst.reason}"
    return outcome, "the runtime does not run it" if outcome == "unproven" else ""


def lazily_run(model: onnx.ModelProto | bytes, optimize: bool) -> Runner:
    """Returns a runner that answers nothing where the runtime refuses the model or the sample."""
    made = lazily(partial(OrtRunner, model, optimize=optimize))

    def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return made(inputs)
        except UnsupportedError:
            return {}

    return run


def run_graph(seed: int) -> tuple[str, str]:
    """Converts the random model of a seed and compares it at every binding."""
    model = random_model(seed)
    module = regraft.load(model)
    regraft.apply(module, DEFAULT_PASSES, check="off")
    samples = [random_inputs(seed, sizes) for sizes in SIZES]
    return compare(model, module, to_proto(module), samples)


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


def run_flip(seed: int, model: RealModel) -> tuple[str, str]:
    """Loads a damaged copy of a model: a clear refusal, or a result like the runtime's.

    A refusal is wrong where the runtime takes the file and runs it.
    """
    data = flip(find(model).read_bytes(), seed)
    try:
        module = import_model(parse_proto(data), None)
        regraft.apply(module, DEFAULT_PASSES, check="off")
        ours = to_proto(module)
    except RegraftError as error:
        refusal = error.message[:160]
        say(case=seed, stage="runtime")
        run = lazily_run(data, optimize=True)
        runs = any(run(inputs) for inputs in _samples_of(data, model, seed))
        return ("wrongly refused" if runs else "refused"), refusal
    say(case=seed, stage="runtime")  # a crash from here on is the runtime's own
    outcome = "unproven", "no sample"
    for inputs in _samples_of(data, model, seed):
        outcome = compare(data, module, ours, [inputs])
        if outcome[0] != "unproven":
            break
    return outcome


def _samples_of(data: bytes, model: RealModel, seed: int) -> Iterator[dict[str, Any]]:
    """Yields a sample of the model, then ones of the sizes that the file declares."""
    binding = model.bindings[seed // len(model.bindings) % len(model.bindings)]
    yield model.build(np.random.default_rng(seed), binding)
    declared = _inputs_of(data)
    if declared:
        yield declared


def _inputs_of(data: bytes) -> dict[str, Any]:
    """Returns ones for the declared inputs, unknown sizes 2."""
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
    models = [named(name) for name in sys.argv[4:]]
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
