"""Fusion tools over many models: `fuse_once` reads jobs from stdin and answers on stdout, as JSON.

A job is `{"model": path, "inputs": path of an npz, "tool": name, "options": {…}}`. Runs under the
interpreter that has the tools, so it imports the standard library, onnx, onnxruntime and the tools
alone. Every job is a forked process with a time limit: a tool that crashes or hangs costs one row.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

REASON_LENGTH = 200
PROVIDERS = ["CPUExecutionProvider"]


def _ort_transformers(source: str, out: str, options: dict[str, Any]) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimized = optimize_model(source, use_gpu=False, **options)
    onnx.save(optimized.model, out)


def _onnxscript(source: str, out: str, options: dict[str, Any]) -> None:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = onnx_ir.load(source)
    result = optimize_for_ort(model)
    onnx_ir.save(result[0], out)


def _onnxslim(source: str, out: str, options: dict[str, Any]) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), out)


def _onnxsim(source: str, out: str, options: dict[str, Any]) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], out)


def _ort_session(source: str, out: str, options: dict[str, Any]) -> None:
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = out
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(source, settings, providers=PROVIDERS)


def _source(source: str, out: str, options: dict[str, Any]) -> None:
    onnx.save(onnx.load(source), out)


TOOLS: dict[str, Callable[[str, str, dict[str, Any]], None]] = {
    "source": _source,
    "ort-transformers": _ort_transformers,
    "onnxscript": _onnxscript,
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
    "ort-session": _ort_session,
}

IMPORTS = {
    "ort-transformers": ("torch", "onnxruntime.transformers.optimizer"),
    "onnxscript": ("onnx_ir", "onnxscript.rewriter.ort_fusions"),
    "onnxslim": ("onnxslim",),
    "onnxsim": ("onnxsim",),
}


def op_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Returns how often each operator occurs, nested graphs and functions included."""
    counts: Counter[str] = Counter()

    def walk(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            counts[node.op_type] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    walk(attribute.g.node)

    walk(model.graph.node)
    for function in model.functions:
        walk(function.node)
    return dict(counts)


def _outputs(path: str, inputs: dict[str, Any], optimize: bool) -> list[Any]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, settings, providers=PROVIDERS)
    known = {item.name for item in session.get_inputs()}
    feeds = {name: array for name, array in inputs.items() if name in known}
    result: list[Any] = session.run(None, feeds)
    return result


def _difference(job: dict[str, Any], out: str) -> float:
    """Returns the largest difference to the source relative to its largest output."""
    with np.load(job["inputs"]) as arrays:
        inputs = dict(arrays)
    expected = _outputs(job["model"], inputs, optimize=False)
    got = _outputs(out, inputs, optimize=True)
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"an output has shape {b.shape}, it was {a.shape}")
        scale = float(np.abs(a).max()) or 1.0
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max()) / scale)
    return worst


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    out = job["out"]
    Path(out).unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        TOOLS[job["tool"]](job["model"], out, job["options"])
    except Exception as error:  # a tool that fails is a row of the table
        return {"ok": False, "reason": f"{type(error).__name__}: {error}"[:REASON_LENGTH]}
    seconds = round(time.perf_counter() - start, 2)
    ops = op_counts(onnx.load(out))
    answer = {"ok": True, "seconds": seconds, "ops": ops}
    try:
        answer["difference"] = _difference(job, out)
    except Exception as error:  # a result that does not run is the finding
        answer["broken"] = f"{type(error).__name__}: {error}"[:REASON_LENGTH]
    return answer


def _child(send: Connection, job: dict[str, Any]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable(logging.CRITICAL)
    send.send(_answer(job))


def _apart(job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, job))
    process.start()
    send.close()
    try:
        if not receive.poll(timeout_s):
            process.kill()
            return {"ok": False, "reason": f"timeout: more than {timeout_s:g} s"}
        answer: dict[str, Any] = receive.recv()
    except EOFError:
        process.join()
        return {"ok": False, "reason": f"the process ended with status {process.exitcode}"}
    finally:
        process.join(10)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds of one job")
    parser.add_argument("--tools", required=True, help="tools to import before forking, by commas")
    options = parser.parse_args()
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tools print while they are imported is no answer
    for tool in options.tools.split(","):
        for module in IMPORTS.get(tool, ()):
            __import__(module)
    for line in sys.stdin:
        stdout.write(json.dumps(_apart(json.loads(line), options.timeout)) + "\n")
        stdout.flush()


if __name__ == "__main__":
    main()
