"""Mapped weights: what a file is when it is read must be what it was when the weight was made."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from regraft.api import apply, load, save
from regraft.backends.onnx import save_onnx
from regraft.ir.errors import InputError
from regraft.ir.spill import SpillFile
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight


def test_mapped_weight_reads_its_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    weight = MappedWeight(path, 8, DType.F32, (2, 2))
    np.testing.assert_array_equal(weight.numpy(), [[2, 3], [4, 5]])


def test_replaced_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(16))
    weight = MappedWeight(path, 0, DType.F32, (4,))
    other = tmp_path / "other"
    other.write_bytes(bytes(16))
    other.replace(path)
    with pytest.raises(InputError, match="replaced or changed"):
        weight.numpy()


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot map"):
        MappedWeight(tmp_path / "w", 0, DType.F32, (4,)).numpy()


def test_spilled_weights_stay_readable_while_more_is_spilled(tmp_path: Path) -> None:
    with SpillFile(tmp_path) as spill:
        weights = [spill.append(np.full(3, i, np.float32)) for i in range(3)]
        assert [float(weight.numpy()[0]) for weight in weights] == [0, 1, 2]


def test_module_saved_over_its_own_data_does_not_go_on_with_wrong_bytes(tmp_path: Path) -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 64] x) => (float[N, 64] y) { dead = MatMul(x, u)  y = MatMul(x, w) }
    """)
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal((64, 64)).astype(np.float32) for _ in "uw"]
    for name, tensor in zip("uw", tensors, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(tensor, name))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    module = load(path)
    apply(module, "canonicalize", check="off")  # without `u`, `w` comes first in the file
    again = tmp_path / "new"
    again.mkdir()
    for file in save_onnx(module, again / "m.onnx", external_above=0):
        file.replace(tmp_path / file.name)
    np.testing.assert_array_equal(load(path).weights["w"].numpy(), tensors[1])
    with pytest.raises(InputError, match="was replaced"):
        save(module, tmp_path / "other.onnx")
