"""Runs node cases through load, passes, save and ONNX Runtime, and through the evaluator.

`python -m tests.conformance.run --ops Add,Relu [-v]` prints a line per operator, and failures.
"""

from __future__ import annotations

import argparse
import collections
import pickle
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import RUNTIME_ERRORS
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from tests.conformance.cases import Case, cache_dir, mismatch, node_cases, run_ort


@dataclass
class Outcome:
    """What happened to one case.

    Attributes:
        baseline: Plain ONNX Runtime passes it.
        specs: Every node has a spec.
        emitted: "" when our saved model gives the expected outputs in ONNX Runtime.
        evaluated: "" when the evaluator gives the expected outputs; "opaque" when it cannot.
    """

    baseline: bool
    specs: bool = False
    emitted: str = "not run"
    evaluated: str = "not run"


def baseline(cases: list[Case]) -> dict[str, bool]:
    """Returns which cases plain ONNX Runtime passes, recorded once per version."""
    path = cache_dir() / f"ort-baseline-{ort.__version__}-{onnx.__version__}-arrays.pkl"
    known: dict[str, bool] = pickle.loads(path.read_bytes()) if path.exists() else {}
    missing = [case for case in cases if case.name not in known]
    for case in missing:
        try:
            known[case.name] = all(
                not mismatch(run_ort(case.proto, i), o, case.rtol, case.atol) for i, o in case.data
            )
        except (*RUNTIME_ERRORS, RuntimeError):  # the latter for results of types numpy lacks
            known[case.name] = False
    if missing:
        path.write_bytes(pickle.dumps(known))
    return known


def run_case(
    case: Case, base: bool, profile: str = "onnx", passes: str = "", *, oracle: bool = False
) -> Outcome:
    """Runs one case; never raises. With `oracle`, the evaluator computes in f64."""
    outcome = Outcome(base)
    try:
        module = load_onnx(case.proto)
        outcome.specs = all(node.op is not opaque for node in module.graph.walk())
        if passes:
            import regraft

            regraft.apply(module, passes)
    except Exception as error:
        outcome.emitted = outcome.evaluated = f"load: {type(error).__name__}: {error}"
        return outcome
    try:
        if base:
            proto = to_proto(module, profile=profile)
            outcome.emitted = next(
                (
                    r
                    for i, o in case.data
                    if (r := mismatch(run_ort(proto, i), o, case.rtol, case.atol))
                ),
                "",
            )
    except Exception as error:
        outcome.emitted = f"{type(error).__name__}: {error}"
    if not outcome.specs:
        outcome.evaluated = "opaque"
        return outcome
    try:
        names = [value.name for value in module.graph.inputs]
        outcome.evaluated = next(
            (
                reason
                for inputs, expected in case.data
                if (
                    reason := mismatch(
                        _evaluated(module, dict(zip(names, inputs, strict=False)), oracle),
                        expected, case.rtol, case.atol,
                    )
                )
            ),
            "",
        )  # fmt: skip
    except Exception as error:
        outcome.evaluated = f"{type(error).__name__}: {error}"
    return outcome


def _evaluated(module: Module, inputs: dict[str, Any], oracle: bool) -> list[Any]:
    outputs = evaluate(module, inputs, oracle=oracle)
    types = [value.dtype for value in module.graph.outputs]
    return [
        array.astype(dtype.numpy) if oracle and dtype is not None and dtype.is_float else array
        for array, dtype in zip(outputs.values(), types, strict=True)
    ]


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", default="")
    parser.add_argument("--profile", default="onnx")
    parser.add_argument("--passes", default="")
    parser.add_argument("-v", action="store_true")
    args = parser.parse_args()
    wanted = set(filter(None, args.ops.split(",")))
    cases = [c for c in node_cases() if not wanted or wanted & c.op_types]
    base = baseline(cases)
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in cases:
        outcome = run_case(case, base[case.name], args.profile, args.passes)
        key = next(iter(sorted(wanted & case.op_types)), "all")
        row = table[key]
        row["cases"] += 1
        row["baseline"] += outcome.baseline
        row["specs"] += outcome.specs
        row["emitted"] += outcome.baseline and outcome.emitted == ""
        row["evaluated"] += outcome.evaluated == ""
        bad = (outcome.baseline and outcome.emitted) or (outcome.specs and outcome.evaluated)
        if bad and (args.v or outcome.specs):
            print(f"{case.name}: emitted={outcome.emitted!r} evaluated={outcome.evaluated!r}"[:600])
    for key, row in sorted(table.items()):
        print(key, dict(row))


if __name__ == "__main__":
    main()
