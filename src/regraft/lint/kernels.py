"""What ONNX Runtime makes of a quantized file: the nodes that are left after its own rewrites.

Which patterns fuse depends on the version and is written nowhere; the optimized graph says it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

_FATAL = 4


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of a graph.

    Args:
        op_type: The operator.
        name: Name of the node, or of its first result.
        stored: Elements of every operand that the file stores, 0 for others.
        attrs: Its attributes.
    """

    op_type: str
    name: str
    stored: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def written_kernels(file: Path) -> list[Kernel]:
    """Returns the nodes of a file as they are written."""
    return _kernels(onnx.load(file, load_external_data=False))


def run_kernels(file: Path) -> list[Kernel]:
    """Returns the nodes that ONNX Runtime runs on the CPU, at its default level.

    Raises:
        RuntimeError: When it does not load the file.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(place)
        options.add_session_config_entry(  # one file holds at most 2 GiB
            "session.optimized_model_external_initializers_file_name", "weights"
        )
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return _kernels(onnx.load(place, load_external_data=False))


def _kernels(model: onnx.ModelProto) -> list[Kernel]:
    sizes = {item.name: prod(item.dims) for item in model.graph.initializer}
    return [
        Kernel(
            node.op_type, node.name or node.output[0],
            tuple(sizes.get(name, 0) for name in node.input),
            {a.name: helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in model.graph.node
    ]  # fmt: skip
