"""What onnxsim makes of the export of a model of `prune_subjects`.

Its pruning of channels and of heads takes a ratio, which is searched for half of the FLOPs.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

from benchmarks.prune_attempts import CLOSE, MAX_RATIOS, STARTS, guarded, next_ratio, positional
from benchmarks.prune_once import LIMIT_S, TARGET, limited
from benchmarks.prune_subjects import Subject, subject
from regraft.frontends.onnx.load import import_model
from regraft.ir.dims import bind
from regraft.ir.flops import macs_of


def measure_onnxsim(name: str) -> dict[str, Any]:
    """Returns what onnxsim makes of the exported model."""
    return guarded(name, lambda row: _onnxsim(row, name))


def _onnxsim(row: dict[str, Any], name: str) -> None:
    import numpy as np
    import onnx
    import onnxruntime
    import onnxsim

    it = subject(name)
    row["stage"] = "export"
    model = _exported(it)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1

    def run(proto: Any) -> list[Any]:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        inputs = [item.name for item in session.get_inputs()]
        arrays = [tensor.numpy() for tensor in it.sample]
        feed = dict(zip(inputs, arrays[: len(inputs)], strict=True))
        outputs: list[Any] = session.run(None, feed)
        return outputs

    simplified, _ = onnxsim.simplify(model)
    expected = run(simplified)
    row["stage"] = "prune"
    start = time.process_time()
    ratio, known, best = STARTS[0], dict[float, float](), None
    dense = _products(simplified)
    with limited(LIMIT_S):
        for _ in range(MAX_RATIOS):
            pruned = onnxsim.apply_structured_pruning_cpp(simplified, ratio)
            pruned = onnxsim.apply_attention_head_pruning_cpp(pruned, ratio)
            outputs = run(pruned)
            left = known[ratio] = _products(onnx.shape_inference.infer_shapes(pruned)) / dense
            if best is None or abs(left - TARGET) < abs(best[0] - TARGET):
                best = (left, pruned, outputs)
            ratio = next_ratio(known)
            if abs(left / TARGET - 1) <= CLOSE or left == 1.0 or ratio in known:
                break
    row["seconds"] = round(time.process_time() - start, 2)
    assert best is not None, "no ratio was tried"
    row["runs"], row["counted"] = True, best[0]
    row["shape"] = [np.shape(x) for x in best[2]] == [np.shape(x) for x in expected]
    row["unjudged"] = "names and layouts of weights change in the export"
    row["stage"] = "done"


def _exported(it: Subject) -> Any:
    """Returns the model as PyTorch's exporter by tracing writes it."""
    import onnx
    import torch

    file = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(positional(it).eval(), it.sample, file, opset_version=17, dynamo=False)
    return onnx.load_from_string(file.getvalue())


def _products(model: Any) -> float:
    """Returns the multiply-accumulates of an ONNX model, by the counter of regraft."""
    total = 0.0
    for node in import_model(model, Path()).graph.walk():
        macs = macs_of(node)
        total += 0 if macs is None else float(str(bind(macs, {})))
    return total
