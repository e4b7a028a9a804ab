"""Every form of every site computes the same, runs, and is raised again by loading."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.legalize import SITES, CostTable, OrtLegalizer
from regraft.backends.onnx.legalize.cases import Case, cases
from regraft.backends.onnx.legalize.site import Limits
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.verify import check
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context, PassResult
from regraft.tuning import possible_forms

KINDS = ("", "tanh ", "masked ", "causal ", "causal grouped ", "causal masked rotary ")

SMALL = [
    case
    for case in cases()
    if case.sizes.get("S", 16) == 16
    and case.sizes.get("D", 64) == 64
    and case.sizes.get("rows", 128) == 128
    and case.sizes.get("width", 128) in (128, 512)
    and "".join(f"{name} " for name, word in case.kind.items() if word == "yes") in KINDS
]
FORMS = [(case, form) for case in SMALL for form in possible_forms(case)]

# f32 sums of at most 512 terms, in another order: eps * sqrt(512) of values around 10
TOLERANCE = 10 * np.finfo(np.float32).eps * 512**0.5


def _legalized(case: Case, form: str) -> tuple[Module, PassResult]:
    module = case.build()
    legalizer = OrtLegalizer(CostTable("ort-cpu", {}, ()), SITES, {case.site: form})
    result = Legalize("ort-cpu").run(module, Context(legalizers={"ort-cpu": legalizer}))
    return module, result


def _operators(graph: Graph) -> Counter[str]:
    return Counter(n.op.name for n in graph.walk() if not n.op.traits & Trait.CONSTANT)


@pytest.mark.parametrize(("case", "form"), FORMS, ids=[f"{c}-{f}" for c, f in FORMS])
def test_a_form_computes_the_same_and_runs(case: Case, form: str) -> None:
    expected = evaluate(case.build(), case.inputs())["y"]
    module, _ = _legalized(case, form)
    check(module)
    assert module.level == "ort-cpu"
    assert np.abs(expected).max() > 1
    evaluated = evaluate(module, case.inputs())["y"]
    assert np.abs(evaluated - expected).max() <= TOLERANCE
    run = OrtRunner(to_proto(module, profile="ort-cpu"))(case.inputs())["y"]
    assert np.abs(run - expected).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "form"),
    [pair for pair in FORMS if pair[1] != "decomposed"],
    ids=[f"{c}-{f}" for c, f in FORMS if f != "decomposed"],
)
def test_loading_raises_a_form_again(case: Case, form: str) -> None:
    module, _ = _legalized(case, form)
    canonical = case.build()
    again = load_onnx(to_proto(module, profile="ort-cpu"))
    for each in (canonical, again):
        Canonicalize().run(each, Context())
    assert again.level == "canonical"
    assert _operators(again.graph) == _operators(canonical.graph)


def test_decisions_name_place_form_and_reason() -> None:
    case = next(case for case in SMALL if case.site == "attention")
    _, result = _legalized(case, "flat")
    (place,) = (p for p in result.decisions["forms"] if p.startswith("attention:"))
    assert result.decisions["forms"][place] == "flat"
    assert result.decisions["reasons"]["attention:flat"] == "decided before"


def test_recorded_forms_are_taken_again() -> None:
    case = next(case for case in SMALL if case.site == "attention")
    module, result = _legalized(case, "flat")
    legalizer = OrtLegalizer(CostTable("ort-cpu", {}, ()), SITES)
    replay = {"legalize": dict(result.decisions)}
    again = case.build()
    Legalize("ort-cpu").run(again, Context(legalizers={"ort-cpu": legalizer}, replay=replay))
    assert str(again) == str(module)


def test_a_low_opset_keeps_native_attention_out() -> None:
    case = next(case for case in SMALL if case.site == "attention")
    site = next(site for site in SITES if site.name == "attention")
    module = case.build()
    node = next(node for node in module.graph if node.op in site.roots)
    assert "flat" in site.forms(node, Limits(23, {}))
    assert not {"flat", "native"} & set(site.forms(node, Limits(22, {})))
