"""Every ONNX node case: the text round trip is the identity, the verifier is silent."""

import pytest

from regraft.frontends.onnx import load_onnx
from regraft.ir.compare import differences
from regraft.ir.errors import RegraftError
from regraft.ir.text import parse_module, print_module
from regraft.ir.verify import verify
from tests.conformance.cases import node_cases


@pytest.mark.slow
def test_node_cases_round_trip_and_verify() -> None:
    broken: dict[str, object] = {}
    refused = 0
    for case in node_cases():
        try:
            module = load_onnx(case.proto)
        except RegraftError:
            refused += 1
            continue
        text = print_module(module, weights="inline")
        back = parse_module(text)
        if print_module(back, weights="inline") != text:
            broken[case.name] = "the text differs"
        elif found := differences(module, back) or verify(module, "full"):
            broken[case.name] = found
    assert broken == {}
    assert refused < 10  # the conformance run names them
