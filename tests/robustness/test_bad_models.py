"""Files that are no usable model are refused: one error that says what, where and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime as ort
import pytest

from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import InputError
from tests.robustness.bad_models import BAD_MODELS, FILES, SIZES, STRUCTURE, BadModel

# the runtime hangs on a pipe, and expands functions until the memory is full
_NOT_FOR_THE_RUNTIME = re.compile("pipe|device|call|expand|huge|overflows")


@pytest.mark.parametrize("bad", BAD_MODELS, ids=lambda bad: bad.name)
def test_bad_model_is_refused_with_reason_and_hint(bad: BadModel, tmp_path: Path) -> None:
    path = bad.build(tmp_path)
    with pytest.raises(InputError) as raised:
        load_onnx(path)
    error = raised.value
    assert re.search(bad.says, error.message), error.message
    assert error.exit_code == 2
    assert error.hint
    assert len(error.message) < 1000


@pytest.mark.parametrize(
    "bad",
    [bad for bad in (*FILES, *SIZES, *STRUCTURE) if not _NOT_FOR_THE_RUNTIME.search(bad.name)],
    ids=lambda bad: bad.name,
)
def test_the_runtime_refuses_it_too(bad: BadModel, tmp_path: Path) -> None:
    """The oracle of the rule that no model is refused which ONNX Runtime runs."""
    path = bad.build(tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"ONNXRuntimeError|Protobuf|[Ee]rror|[Ii]nvalid|not"):
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_names_are_unique() -> None:
    names = [bad.name for bad in BAD_MODELS]
    assert len(set(names)) == len(names) > 60
