"""The ONNX backend test cases of the installed `onnx`, generated once and cached on disk."""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from regraft.frontends.onnx.tensors import tensor_to_array

os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")


@dataclass(frozen=True)
class Case:
    """One backend test: a serialized model and (inputs, expected outputs) sets."""

    name: str
    model: bytes
    data: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.ModelProto.FromString(self.model)

    @property
    def op_types(self) -> set[str]:
        return {node.op_type for node in self.proto.graph.node}


def cache_dir() -> Path:
    """Returns the folder that holds generated cases and recorded baselines."""
    path = Path(os.environ.get("REGRAFT_CACHE", Path(tempfile.gettempdir()) / "regraft-cache"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def node_cases() -> list[Case]:
    """Returns every node case; about 40 seconds the first time."""
    path = cache_dir() / f"node-cases-{onnx.__version__}-arrays.pkl"
    if path.exists():
        with path.open("rb") as file:
            return pickle.load(file)
    from onnx.backend.test.case.node import collect_testcases

    cases = []
    with warnings.catch_warnings():
        # some cases cast on purpose what overflows, and numpy says so while they are made
        warnings.simplefilter("ignore", RuntimeWarning)
        collected = collect_testcases(None)
    for case in collected:
        if case.model is None or case.data_sets is None:
            continue
        data = tuple((_arrays(i), _arrays(o)) for i, o in case.data_sets)
        cases.append(Case(case.name, case.model.SerializeToString(), data, case.rtol, case.atol))
    temp = path.with_suffix(f".{os.getpid()}")
    with temp.open("wb") as file:
        pickle.dump(cases, file)
    temp.replace(path)
    return cases


def _arrays(values: Iterable[Any]) -> list[Any]:
    """Returns sample values as the evaluator and the runtime take them.

    The suite holds some rank-0 tensors as numpy scalars and some of the types that numpy lacks as
    TensorProtos.
    """
    return [
        tensor_to_array(value)
        if isinstance(value, onnx.TensorProto)
        else np.asarray(value)
        if isinstance(value, np.generic | int | float)
        else value
        for value in values
    ]


def run_ort(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    """Runs a model in ONNX Runtime on positional inputs, default optimizations, one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        item.name: _ort_value(item.type, value)
        for item, value in zip(session.get_inputs(), inputs, strict=False)
    }
    if not any(isinstance(value, ort.OrtValue) for value in feeds.values()):
        return session.run(None, feeds)
    values = {
        name: value
        if isinstance(value, ort.OrtValue)
        else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        for name, value in feeds.items()
    }
    names = [item.name for item in session.get_outputs()]
    return [value.numpy() for value in session.run_with_ort_values(names, values)]


# element types that numpy knows through ml_dtypes only: the binding takes them with their code
_TYPE_CODES = {
    "tensor(bfloat16)": onnx.TensorProto.BFLOAT16,
    "tensor(float8e4m3fn)": onnx.TensorProto.FLOAT8E4M3FN,
    "tensor(float8e4m3fnuz)": onnx.TensorProto.FLOAT8E4M3FNUZ,
    "tensor(float8e5m2)": onnx.TensorProto.FLOAT8E5M2,
    "tensor(float8e5m2fnuz)": onnx.TensorProto.FLOAT8E5M2FNUZ,
}


def _ort_value(type_: str, value: Any) -> Any:
    code = _TYPE_CODES.get(type_)
    if code is None:
        return value
    raw = value.view(np.uint8 if value.dtype.itemsize == 1 else np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, code)


def mismatch(actual: Iterable[Any], expected: Iterable[Any], rtol: float, atol: float) -> str:
    """Returns "" when the outputs agree, else a short reason."""
    actual, expected = list(actual), list(expected)
    if len(actual) != len(expected):
        return f"{len(actual)} outputs, expected {len(expected)}"
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if reason := _mismatch(a, e, rtol, atol):
            return f"output {i}: {reason}"
    return ""


def _mismatch(a: Any, e: Any, rtol: float, atol: float) -> str:
    if isinstance(e, list | tuple):
        if not isinstance(a, list | tuple) or len(a) != len(e):
            return "sequence lengths differ"
        return next(
            (r for x, y in zip(a, e, strict=True) if (r := _mismatch(x, y, rtol, atol))), ""
        )
    if e is None or a is None:
        return "" if a is None and e is None else "one is absent"
    a, e = np.asarray(a), np.asarray(e)
    if a.shape != e.shape:
        return f"shape {a.shape}, expected {e.shape}"
    if e.dtype.kind in "OUS":
        same = [str(x) for x in a.reshape(-1)] == [str(y) for y in e.reshape(-1)]
        return "" if same else "strings differ"
    if a.dtype != e.dtype and a.dtype.itemsize != e.dtype.itemsize:
        return f"dtype {a.dtype}, expected {e.dtype}"
    if e.dtype in (np.float16, ml_dtypes.bfloat16):
        # where intermediate values are rounded shifts a result by about one unit in its last
        # place, and by half of that relative to the largest term of a sum
        eps = float(ml_dtypes.finfo(e.dtype).eps)
        finite = np.abs(e[np.isfinite(e)].astype(np.float64))
        rtol, atol = max(rtol, eps), max(atol, eps / 2 * float(np.max(finite, initial=0)))
    if a.dtype.kind == "V" or e.dtype.kind == "V":
        a, e = a.view(e.dtype).astype(np.float64), e.astype(np.float64)
    if e.dtype.kind in "fc":
        with np.errstate(invalid="ignore"):  # numpy warns of a signalling NaN
            close = np.allclose(a.astype(np.complex128), e.astype(np.complex128), rtol, atol, True)
        return "" if close else f"max difference {np.nanmax(np.abs(a.astype(complex) - e)):.3g}"
    return "" if np.array_equal(a, e) else "values differ"
