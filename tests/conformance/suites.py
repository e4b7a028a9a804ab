"""The ONNX backend suites: node, simple, pytorch-converted, pytorch-operator, real.

The `real` suite holds nine trained-network structures whose weights are constants; it comes without
data, so its reference is plain ONNX Runtime on one random input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from tests.conformance.cases import Case, node_cases, run_ort

FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")
SUITES = ("node", *FOLDERS, "real")
_REAL_RTOL, _REAL_ATOL = 1e-3, 1e-5  # as the suite's own runner compares them


def suite(name: str) -> list[Case]:
    """Returns the cases of one suite."""
    if name == "node":
        return node_cases()
    if name == "real":
        return [_real_case(test.model_name, test.url) for test in load_model_tests(kind="real")]
    return [
        _folder_case(test.name, Path(test.model_dir), test.rtol, test.atol)
        for test in load_model_tests(kind=name)
    ]


def _folder_case(name: str, folder: Path, rtol: float, atol: float) -> Case:
    model = (folder / "model.onnx").read_bytes()
    proto = onnx.ModelProto.FromString(model)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [info for info in proto.graph.input if info.name not in constants]
    data = tuple(
        (
            _read_all(_files(data_set, "input"), inputs),
            _read_all(_files(data_set, "output"), proto.graph.output),
        )
        for data_set in sorted(folder.glob("test_data_set_*"))
    )
    return Case(name, model, data, rtol, atol)


def _read_all(paths: Sequence[Path], infos: Iterable[onnx.ValueInfoProto]) -> list[Any]:
    return [_read(path, info.type) for path, info in zip(paths, infos, strict=False)]


def _files(folder: Path, stem: str) -> list[Path]:
    found = folder.glob(f"{stem}_*.pb")
    return sorted(found, key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))


def _read(path: Path, type_: onnx.TypeProto) -> Any:
    raw = path.read_bytes()
    match type_.WhichOneof("value"):
        case "sequence_type":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
        case "optional_type":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
        case _:
            return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def _real_case(name: str, url: str) -> Case:
    path = Path(onnx.__file__).parent.parent / url
    model = path.read_bytes()
    proto = onnx.ModelProto.FromString(model)
    constants = {tensor.name for tensor in proto.graph.initializer}
    rng = np.random.default_rng(0)
    inputs = [
        rng.random([dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim], np.float32)
        for info in proto.graph.input
        if info.name not in constants
    ]
    return Case(name, model, ((inputs, run_ort(proto, inputs)),), _REAL_RTOL, _REAL_ATOL)
