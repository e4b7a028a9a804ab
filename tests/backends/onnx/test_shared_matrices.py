"""A matrix and its transpose, both multiplied by, are one tensor of the file."""

import numpy as np
import onnx
import onnxruntime
import pytest

from regraft.backends.onnx import save_onnx, to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.protocol import Context

D = 64
MATRIX = "  %t = weight @table"
HEAD = "  %u = weight @table\n  %h = transpose(%u) {perm = [1, 0]}"


def lm(
    *,
    tokens: int = 300,
    head_first: bool = False,
    dtype: str = "f32",
    last: str = "",
    more: str = "",
) -> Module:
    """Returns a table of tokens whose transpose is the head, as `canonicalize` leaves them."""
    first, then = (HEAD, MATRIX) if head_first else (MATRIX, HEAD)
    module = parse_module(f"""
module "lm"
symbol B
weight @table : {dtype}[{tokens}, {D}] role=param = random(1)
graph(%ids : i64[B]) {{
{first}
{then}
  %x = gather(%t, %ids) {{axis = 0}}
  %y = matmul(%x, %h)
{last}
  return %y{more}
}}
""")
    Canonicalize().run(module, Context())
    assert "transpose" not in {node.op.name for node in module.graph}
    return module


def large(proto: onnx.ModelProto) -> list[list[int]]:
    return [list(each.dims) for each in proto.graph.initializer if np.prod(each.dims) > D]


def ids(tokens: int = 300) -> dict[str, np.ndarray]:
    return {"ids": np.array([0, 5, tokens - 1])}


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_the_table_is_stored_once(head_first, dtype):
    module = lm(head_first=head_first, dtype=dtype, tokens=600)
    proto = to_proto(module)
    onnx.checker.check_model(proto, full_check=True)
    assert large(proto) == [[600, D]]
    (wanted,) = evaluate(module, ids(600)).values()
    (found,) = OrtRunner(proto)(ids(600)).values()
    # sums of 64 products of numbers near 1, of up to 64 in magnitude, in another order
    allowed = 64 * 64 * np.finfo(wanted.dtype).eps
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


def test_the_runtime_multiplies_by_the_folded_transpose(tmp_path):
    (tmp_path / "m.onnx").write_bytes(to_proto(lm()).SerializeToString())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3  # what it writes fits this machine alone
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options)
    ran = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert ran == ["Gather", "MatMul"]


def test_a_file_is_read_back_as_it_was_and_written_alike():
    proto = to_proto(lm())
    again = load_onnx(proto)
    Canonicalize().run(again, Context())
    assert [node.op.name for node in again.graph].count("transpose") == 0
    assert large(to_proto(again)) == [[300, D]]


def test_weights_beside_the_model_hold_the_table_once(tmp_path):
    module = lm()
    total = 300 * D * 4
    assert len(save_onnx(module, tmp_path / "in.onnx", external_above=total)) == 1
    _, data = save_onnx(module, tmp_path / "out.onnx", external_above=total - 1)
    assert data.stat().st_size == total
    (wanted,) = evaluate(module, ids()).values()
    found = onnxruntime.InferenceSession(str(tmp_path / "out.onnx")).run(None, ids())[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=64 * 64 * np.finfo(np.float32).eps)


GATHERED = "  %z = gather(%h, %ids) {axis = 1}"


@pytest.mark.parametrize(
    "module",
    [lm(tokens=200), lm(more=", %h"), lm(last=GATHERED, more=", %z")],
    ids=["small", "output", "gathered"],
)
def test_others_stay_as_they_are(module):
    assert len(large(to_proto(module))) == 2
