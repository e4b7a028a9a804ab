"""`cast` on the node suite: every case with f32 values, in both types, interface cast too.

`python -m tests.conformance.half [--ops Softmax,Gemm]` prints what fails and exits 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import RegraftError, UnsupportedError
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.types import DType
from regraft.ir.verify import verify
from regraft.passes.check.compare import compare_outputs
from regraft.passes.check.module_check import check_module
from regraft.passes.check.rounding import NoiseRunner, RetypedRunner
from regraft.passes.check.runners import EvalRunner, unevaluable
from regraft.passes.check.samples import Sample
from regraft.passes.precision import Cast
from regraft.passes.precision.cast import DTYPES
from regraft.passes.protocol import Context, Rounded
from tests.conformance.cases import Case, node_cases


def cases_with_f32(ops: set[str]) -> Iterator[tuple[Case, Module]]:
    """Yields the cases that hold an f32 value and whose source the checker accepts as emitted."""
    for case in node_cases():
        if ops and not ops & case.op_types:
            continue
        proto = case.proto
        if not any(i.type.tensor_type.elem_type == 1 for i in proto.graph.input):
            continue
        module = load_onnx(proto)
        try:
            onnx.checker.check_model(to_proto(module), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RegraftError):
            continue  # what the plain emission has the same trouble with is not about precision
        yield case, module


def problem(case: Case, module: Module, dtype: str) -> tuple[str, int]:
    """Returns what goes wrong with a case, "" when nothing, and how many nodes were lowered."""
    inputs = _inputs(case, module)
    source = module.clone()
    lowered = Cast(dtype, io="cast").run(module, Context(samples=[inputs])).stats["lowered"]
    broken = verify(module, "full")
    if broken:
        return f"verifier: {broken[0]}", int(lowered)
    proto = to_proto(module)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"checker: {error}", int(lowered)
    if unevaluable(source) or any(Trait.DISCRETE in n.op.traits for n in source.graph.walk()):
        return "", int(lowered)  # a rounded operand of a discrete operator may change its result
    runners: list[Any] = [EvalRunner(module)]
    if dtype == "fp16" and _runtime_agrees(source, inputs):  # it has no kernels for bf16
        runners.append(OrtRunner(proto))
    for runner in runners:
        try:
            report = check_module(
                EvalRunner(source), NoiseRunner(source, DTYPES[dtype]),
                RetypedRunner(runner, source, module), [Sample(inputs, {}, "case")],
                contract=Rounded(DTYPES[dtype]),
            )  # fmt: skip
        except RegraftError as error:
            return f"{type(runner).__name__}: {error.message}", int(lowered)
        wrong = [f"{d.name}: {d.reason}" for d in report.outputs if not d.ok]
        if wrong:
            return f"{type(runner).__name__}: {wrong[0]}", int(lowered)
    return "", int(lowered)


def _runtime_agrees(source: Module, inputs: Mapping[str, Any]) -> bool:
    """Returns whether ONNX Runtime computes in f32 what the evaluator does."""
    try:
        actual = OrtRunner(to_proto(source))(inputs)
    except UnsupportedError:
        return False
    return all(diff.ok for diff in compare_outputs(EvalRunner(source)(inputs), actual))


def _inputs(case: Case, module: Module) -> Mapping[str, Any]:
    given, _ = case.data[0]
    return {
        str(value.name): array
        for value, array in zip(module.graph.inputs, given, strict=False)
        if value.dtype is None or isinstance(array, np.ndarray | list) or value.dtype is DType.F32
    }


def main() -> int:
    """Runs the suite and prints failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", default="")
    options = parser.parse_args()
    ops = set(filter(None, options.ops.split(",")))
    count, lowered, bad = 0, 0, 0
    for case, module in cases_with_f32(ops):
        for dtype in DTYPES:
            count += 1
            what, num = problem(case, module.clone(), dtype)
            lowered += num > 0
            if what:
                bad += 1
                print(f"{case.name} {dtype}: {' '.join(what.split())[:300]}")
    print(f"{count} casts, {lowered} of them lower something, {bad} fail")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
