"""Trained models in half precision: well-typed, half the size, within the noise of rounding."""

from pathlib import Path

import onnx
import pytest

import regraft
from benchmarks.models import CORE, ModelMissingError, RealModel, find, samples
from regraft.frontends.onnx import load_onnx
from regraft.ir.types import DType
from regraft.ir.verify import verify

QUANTIZED = ("minilm-int8",)


@pytest.mark.parametrize("model", CORE, ids=lambda model: model.name)
def test_fp16_file(model: RealModel, tmp_path: Path) -> None:
    try:
        path = find(model)
    except ModelMissingError as error:
        pytest.skip(str(error))
    out = tmp_path / "half.onnx"
    result = regraft.convert(
        path, out, dtype="fp16", passes="canonicalize,fold-norms", samples=samples(model)
    )
    assert result.check.ok
    assert result.check.verified == "module"
    assert verify(result.module, "full") == []
    if model.name not in QUANTIZED:  # what is 8 bits already stays
        assert out.stat().st_size <= 0.51 * path.stat().st_size
    declared = [v.dtype for v in load_onnx(out).graph.outputs]
    assert declared == [v.dtype for v in load_onnx(path).graph.outputs]
    if not any(value.dtype is None or value.shape is None for value in result.module.graph.outputs):
        onnx.checker.check_model(out, full_check=True)


def test_bf16_is_well_typed_and_checked_in_the_evaluator(tmp_path: Path) -> None:
    model = next(m for m in CORE if m.name == "ppocr-cls")
    try:
        path = find(model)
    except ModelMissingError as error:
        pytest.skip(str(error))
    result = regraft.convert(
        path, tmp_path / "b.onnx", dtype="bf16", passes="canonicalize,fold-norms", target="onnx",
        samples=samples(model),
    )  # fmt: skip
    assert result.check.ok
    onnx.checker.check_model(tmp_path / "b.onnx", full_check=True)
    assert DType.BF16 in {result.module.weights[name].dtype for name in result.module.weights}
