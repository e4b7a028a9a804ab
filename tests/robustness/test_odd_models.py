"""Models with a meaning are never refused, and mean the same after every stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module, print_module
from regraft.ir.verify import check
from regraft.pipelines import DEFAULT_PASSES
from tests.conformance.cases import mismatch, run_ort
from tests.robustness.odd_models import ODD_MODELS, OddModel

# one rounding of f32 in each of a handful of operators on numbers around 1
RTOL = ATOL = 8 * 2.0**-24

EACH = pytest.mark.parametrize("odd", ODD_MODELS, ids=lambda odd: odd.name)


def _feeds(proto: onnx.ModelProto, inputs: Mapping[str, Any]) -> list[Any]:
    return [inputs[item.name] for item in proto.graph.input if item.name in inputs]


@EACH
@pytest.mark.parametrize("passes", ["", DEFAULT_PASSES])
def test_odd_model_means_the_same(odd: OddModel, passes: str) -> None:
    proto = odd.build()
    names = [item.name for item in proto.graph.output]
    expected = run_ort(odd.tidy() if odd.tidy else proto, _feeds(proto, odd.inputs))
    module = load_onnx(proto)
    if passes:
        regraft.apply(module, passes)
    for profile in ("onnx", "ort-cpu"):
        emitted = to_proto(module, profile=profile)
        assert [item.name for item in emitted.graph.output] == names
        actual = run_ort(emitted, _feeds(emitted, odd.inputs))
        assert mismatch(actual, expected, RTOL, ATOL) == "", profile
    if not any(node.op is opaque for node in module.graph.walk()):
        values = evaluate(module, odd.inputs)
        assert mismatch([values[name] for name in names], expected, RTOL, ATOL) == "", "evaluated"


@EACH
def test_odd_model_warns_of_what_was_ignored(odd: OddModel) -> None:
    warnings = load_onnx(odd.build()).warnings
    if odd.warns:
        assert any(re.search(odd.warns, text) for text in warnings), warnings
    else:
        assert warnings == []


@EACH
def test_odd_model_is_sound_ir_and_prints(odd: OddModel) -> None:
    module = load_onnx(odd.build())
    check(module)
    text = print_module(module)
    assert print_module(parse_module(text)) == text


@EACH
def test_odd_model_keeps_its_symbols(odd: OddModel) -> None:
    proto = odd.build()
    emitted = to_proto(load_onnx(proto))
    for before in proto.graph.input:
        after = next((item for item in emitted.graph.input if item.name == before.name), None)
        if after is None:  # an initializer that was an input too
            assert before.name in {item.name for item in proto.graph.initializer}
            continue
        for a, b in zip(
            before.type.tensor_type.shape.dim, after.type.tensor_type.shape.dim, strict=True
        ):
            if any(char.isalnum() for char in a.dim_param):
                assert a.dim_param == b.dim_param


def test_names_are_unique() -> None:
    names = [odd.name for odd in ODD_MODELS]
    assert len(set(names)) == len(names) > 50
