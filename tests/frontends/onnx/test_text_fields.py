"""Text that is not UTF-8, and numbers no operator can mean, in damaged files."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx.load import import_model
from regraft.frontends.onnx.reader import parse_proto
from regraft.ir.errors import InputError
from regraft.ir.evaluate import evaluate
from tests.robustness.build import graph, info, linear, model, node, weight


def test_operator_type_that_is_no_text_is_refused() -> None:
    data = linear().SerializeToString().replace(b"MatMul", b"Mat\xfful", 1)
    with pytest.raises(InputError, match="not UTF-8"):
        import_model(parse_proto(data), None)


def test_notes_that_are_no_text_are_kept_readable() -> None:
    proto = linear()
    proto.producer_name = "maker"
    data = proto.SerializeToString().replace(b"maker", b"m\xffker", 1)
    module = import_model(parse_proto(data), None)
    assert module.meta["onnx.producer"] == "m\N{REPLACEMENT CHARACTER}ker"


def test_stride_of_zero_is_refused() -> None:
    made = model(
        graph(
            [node("Conv", "x w", "y", strides=[0])],
            inputs=[info("x", (1, 4, 8))],
            outputs=[info("y", None)],
            initializers=[weight("w", (4, 4, 3))],
        )
    )
    with pytest.raises(InputError, match="`strides` must be positive"):
        import_model(made, None)


@pytest.mark.parametrize("name", [b"v\xd8lue", b"vblue"])
def test_the_only_attribute_of_a_constant_is_its_value(name: bytes) -> None:
    made = model(
        graph(
            [node("Constant", "", "c", value=numpy_helper.from_array(np.float32([1, 2]), "VALUE"))],
            inputs=[],
            outputs=[info("c", (2,))],
        )
    )
    data = made.SerializeToString().replace(b"\n\x05value", b"\n\x05" + name, 1)
    assert data != made.SerializeToString()
    (result,) = evaluate(import_model(parse_proto(data), None), {}).values()
    np.testing.assert_array_equal(result, [1, 2])
    (expected,) = OrtRunner(parse_proto(data))({}).values()
    np.testing.assert_array_equal(expected, [1, 2])
