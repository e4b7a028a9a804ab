"""Runs the ONNX node cases as generated PyTorch modules.

`python -m tests.backends.torch.node_cases [--ops Add,Relu] [-v]` prints counts, and failures.
"""

from __future__ import annotations

import argparse
import collections
import os

from regraft.backends.torch.build import source_of, to_torch
from regraft.backends.torch.executor import TorchRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from tests.conformance.cases import Case, mismatch, node_cases

PASSED = "passed"
NO_SPEC = "no spec"


def run_case(case: Case) -> str:
    """Returns `passed`, `no spec`, or what went wrong."""
    module = load_onnx(case.proto)
    if any(node.op is opaque for node in module.graph.walk()):
        return NO_SPEC
    runner = TorchRunner(to_torch(module), module)
    names = [str(value.name) for value in module.graph.inputs]
    for inputs, expected in case.data:
        padded = [*inputs, *[None] * (len(names) - len(inputs))]
        outputs = runner(dict(zip(names, padded, strict=True)))
        reason = mismatch(outputs.values(), expected, case.rtol, case.atol)
        if reason:
            return reason
    return PASSED


def outcome(case: Case) -> str:
    """Returns what `run_case` says, or the error that it raised."""
    try:
        return run_case(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", default="")
    parser.add_argument("--names", default="")
    parser.add_argument("-v", action="store_true", help="print the source of failures")
    args = parser.parse_args()
    wanted = set(filter(None, args.ops.split(",")))
    counts: collections.Counter[str] = collections.Counter()
    for case in node_cases():
        if (wanted and not wanted & case.op_types) or args.names not in case.name:
            continue
        result = outcome(case)
        counts[result if result in (PASSED, NO_SPEC) else "failed"] += 1
        if result not in (PASSED, NO_SPEC):
            print(f"{case.name}: {result}"[:300], flush=True)
            if args.v:
                print(source_of(to_torch(load_onnx(case.proto))))
    print(dict(counts))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
