"""Experts by ONNX Runtime's kernel or gathering their tokens: which form, and that both agree."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.legalize import SITES, CostTable, OrtLegalizer
from regraft.backends.onnx.legalize.cases import Case, cases
from regraft.backends.onnx.legalize.costs import Entry
from regraft.backends.onnx.legalize.site import Limits
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context

CASES = [case for case in cases() if case.site == "moe" and case.sizes["T"] in (1, 16)]
SMALL = [case for case in CASES if case.sizes["D"] == 256 and case.sizes["E"] > 8]
(SITE,) = (site for site in SITES if site.name == "moe")
# f32 sums of at most 1024 terms, in another order: eps * sqrt(1024) of values around 10
TOLERANCE = 10 * np.finfo(np.float32).eps * 1024**0.5


def _legalized(case: Case, table: CostTable, **forced: str) -> Module:
    module = case.build()
    legalizer = OrtLegalizer(table, SITES, forced)
    Legalize("ort-cpu").run(module, Context(legalizers={"ort-cpu": legalizer}))
    return module


def _has_kernel(module: Module) -> bool:
    ops = [node.op_type for node in to_proto(module, profile="ort-cpu").graph.node]
    assert ("MoE" in ops) != ("NonZero" in ops)
    return "MoE" in ops


@pytest.mark.parametrize("form", ["kernel", "gathered"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_both_forms_compute_the_same(case: Case, form: str) -> None:
    module = _legalized(case, CostTable("ort-cpu", {}, ()), moe=form)
    expected = evaluate(case.build(), case.inputs())["y"]
    assert _has_kernel(module) is (form == "kernel")
    run = OrtRunner(to_proto(module, profile="ort-cpu"))(case.inputs())["y"]
    assert np.abs(expected).max() > 1
    assert np.abs(run - expected).max() <= TOLERANCE


def test_the_table_chooses_by_all_numbers_of_tokens_that_are_possible() -> None:
    case = SMALL[0]
    entries = tuple(
        Entry("moe", case.kind, {**case.sizes, "T": tokens}, {"kernel": 1.0, "gathered": ratio})
        for tokens, ratio in ((1, 1.1), (16, 0.6), (64, 0.5))
    )
    assert _has_kernel(_legalized(case, CostTable("ort-cpu", {}, entries)))
    module, table = case.build(), CostTable("ort-cpu", {}, entries[1:])
    assert not _has_kernel(_legalized(case, table))
    node = next(node for node in module.graph if node.op in SITE.roots)
    features = SITE.features(node, Limits(26, {"B": 1, "S": 16}))
    assert features is not None
    assert features.sizes["T"] == (16,)
    assert features.sizes["E"] == (case.sizes["E"],)


def test_gathering_is_standard_for_many_tokens_and_needs_sums_of_scattered_rows() -> None:
    module = SMALL[0].build()
    node = next(node for node in module.graph if node.op in SITE.roots)
    assert next(iter(SITE.forms(node, Limits(26, {"B": 4, "S": 4})))) == "gathered"
    assert next(iter(SITE.forms(node, Limits(26, {"B": 1, "S": 4})))) == "kernel"
    assert SITE.features(node, Limits(15, {})) is None
