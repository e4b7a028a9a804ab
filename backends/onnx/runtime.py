"""Running ONNX models in ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from regraft.backends.onnx.tensors import ONNX_DTYPES
from regraft.ir.errors import UnsupportedError
from regraft.ir.types import DType, dtype_of
from regraft.ir.weights import pack

RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.NoSuchFile,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    ort_errors.ModelLoadCanceled,
)
"""Everything that ONNX Runtime raises for a model or an input it cannot take."""

_FLOAT_PRODUCTS = "1"  # the accuracy level of f32

_NATIVE = frozenset("fiubcOUS")
_NO_KERNEL = re.compile(
    r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'"
)


class OrtRunner:
    """A session over a file or serialized model.

    Args:
        model: A path (external data is found beside it), serialized bytes, or a ModelProto.
        optimize: Whether the runtime may rewrite the graph.
        num_threads: Threads within an operator.
        full_products: Whether products by matrices of few bits take their other operand as it is;
            the files of `accuracy_level=4`, and the runtime where it finds such a product itself,
            round it to 8 bits.

    Raises:
        UnsupportedError: When ONNX Runtime does not load the model, with its reason.
    """

    def __init__(
        self,
        model: Path | str | bytes | onnx.ModelProto,
        *,
        optimize: bool = True,
        num_threads: int = 1,
        full_products: bool = False,
    ) -> None:
        self._model = model
        self._optimize = optimize
        self._num_threads = num_threads
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if full_products:
            model = _in_full(model, options)
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        if isinstance(source, Path):
            source = str(source)
        try:
            self.session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except (*RUNTIME_ERRORS, UnicodeDecodeError) as error:  # it hands out names as text
            kernel = _NO_KERNEL.search(str(error))
            if kernel is not None:
                raise UnsupportedError(
                    f"ONNX Runtime has no CPU kernel for `{kernel[1]}` with the element type that "
                    f"node `{kernel[2]}` has",
                    hint="its kernels compute in f32, some in f16 and f64 too: make the model f32 "
                    "there (in PyTorch, `module.float()`)",
                ) from error
            raise UnsupportedError(
                f"ONNX Runtime does not load the model: {_short(error)}"
            ) from error
        self.input_names = [item.name for item in self.session.get_inputs()]
        self.output_names = [item.name for item in self.session.get_outputs()]

    def in_full(self, *, optimize: bool | None = None) -> OrtRunner:
        """Returns a runner of the same model whose products by few bits round no operand.

        Args:
            optimize: Whether the runtime may rewrite the graph; None for as it may here.
        """
        return OrtRunner(
            self._model, optimize=self._optimize if optimize is None else optimize,
            num_threads=self._num_threads, full_products=True,
        )  # fmt: skip

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs one sample; inputs that the model does not have are ignored.

        Raises:
            UnsupportedError: When the runtime refuses the sample.
        """
        feeds = {name: _feed(inputs[name]) for name in self.input_names if name in inputs}
        try:
            if all(isinstance(item, np.ndarray | list) for item in feeds.values()):
                results = self.session.run(None, feeds)
            else:
                values = {
                    name: item
                    if isinstance(item, ort.OrtValue)
                    else ort.OrtValue.ortvalue_from_numpy(item)
                    for name, item in feeds.items()
                }
                # copied: an output that is an input as it came lies in memory of the caller's
                results = [
                    each.numpy().copy() for each in self.session.run_with_ort_values(None, values)
                ]
        except (*RUNTIME_ERRORS, RuntimeError, ValueError) as error:
            is_double = "does not support double" in str(error)
            raise UnsupportedError(
                f"ONNX Runtime does not run the sample: {_short(error)}",
                hint="make the model f32 there (in PyTorch, `module.float()`)"
                if is_double
                else None,
            ) from error
        return dict(zip(self.output_names, results, strict=True))


def _in_full(
    model: Path | str | bytes | onnx.ModelProto, options: ort.SessionOptions
) -> onnx.ModelProto:
    """Returns the model at full accuracy; the options say where its external data lies."""
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _FLOAT_PRODUCTS)
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    elif isinstance(model, bytes):
        proto = onnx.load_model_from_string(model)
    else:
        proto = onnx.load(model, load_external_data=False)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(model).parent)
        )
    held: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while held:
        for attribute in (each for node in held.pop().node for each in node.attribute):
            if attribute.name == "accuracy_level":
                attribute.i = int(_FLOAT_PRODUCTS)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                held.append(attribute.g)
    return proto


def _feed(array: Any) -> Any:
    if not isinstance(array, np.ndarray) or array.dtype.kind in _NATIVE:
        return array
    dtype = dtype_of(array)
    if dtype is DType.STRING:
        return array
    raw = np.frombuffer(pack(array, dtype), np.uint8) if dtype.bits < 8 else array
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, ONNX_DTYPES[dtype])


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " …"
