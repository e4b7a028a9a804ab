"""Linear and hybrid attention in simpler operators, as in ONNX, are read as one operator again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from regraft.auditing import audit_module
from regraft.backends.onnx import to_proto
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import attention, linalg
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight
from regraft.passes.linearization.audit import mixers
from regraft.passes.linearization.written_mixers import read_mixers
from tests.passes.linearization.language_model import VOCABULARY, language_model

B, H, D, E = 2, 4, 8, 6
RNG = np.random.default_rng(11)


def _module(length: int | str, *, kv: int, is_causal: bool, is_masked: bool) -> Module:
    module = Module(Graph())
    graph, b = module.graph, Builder(module.graph)
    T = Dim.of(graph.scope.symbol(length)) if isinstance(length, str) else length
    values: list[Value | None] = [
        graph.add_input(name, TensorType(DType.F32, (B, heads, T, width)))
        for name, heads, width in (("q", H, D), ("k", kv, D), ("v", kv, E))
    ]
    # a model computes them: the tensors are no inputs
    matrix = b.constant(np.eye(D, dtype=np.float32) * 1.5)
    values[0] = b.op(linalg.matmul, values[0], matrix)
    if is_masked:
        values.append(graph.add_input("mask", TensorType(DType.BOOL, (B, 1, 1, T))))
    made = b.op(
        attention.attention, *values, scale=0.3, kv_groups=H // kv,
        causal_offset=0 if is_causal else None,
    )  # fmt: skip
    graph.add_output("y", made)
    return module


def _stored(module: Module) -> Module:
    """Returns the module as its file of standard operators has it."""
    return regraft.load(to_proto(module))


@pytest.mark.parametrize("length", [40, "T"])
@pytest.mark.parametrize("is_masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(
    ("options", "kv", "is_causal"),
    [
        ("window=3,merge=share", H, True),
        ("window=3,merge=lse", 2, True),
        ("window=20,merge=lolcats", 1, True),
        ("window=3,features=8", 2, True),
        ("method=t2r,window=5", H, True),
        ("method=hedgehog", 2, True),
        ("method=elu", H, True),
        ("method=exp", H, False),
        ("method=taylor", 2, False),
    ],
)
def test_a_file_holds_the_operator(
    options: str, kv: int, is_causal: bool, is_masked: bool, length: int | str
) -> None:
    made = _module(length, kv=kv, is_causal=is_causal, is_masked=is_masked)
    regraft.apply(made, f"linearize-attention{{{options}}}", check="off")
    if "window=" in options:  # a gain of 1 would be folded
        made.weights.set("attention.0.window", ArrayWeight(np.linspace(-1, 1, H, dtype=np.float32)))
    (old,) = mixers(made)
    stored = _stored(made)
    assert not mixers(stored)
    regraft.apply(stored, "canonicalize", check="off")
    assert read_mixers(stored) == (1, [])
    (new,) = mixers(stored)
    assert new.op is old.op
    for name in ("window", "merge") if new.op is hybrid_attention else ("causal", "normalizer"):
        assert new.attrs[name] == old.attrs[name]
    feeds: dict[str, Any] = {
        name: RNG.standard_normal((B, heads, 40, width)).astype(np.float32)
        for name, heads, width in (("q", H, D), ("k", kv, D), ("v", kv, E))
    }
    if is_masked:
        feeds["mask"] = RNG.random((B, 1, 1, 40)) < 0.7
    np.testing.assert_allclose(
        evaluate(stored, feeds)["y"], evaluate(made, feeds)["y"], atol=1e-5, rtol=1e-5
    )


def test_what_is_no_attention_stays() -> None:
    """A weight that is squared is no weight of linear attention: the guess is refuted."""
    made = _module(40, kv=H, is_causal=True, is_masked=False)
    regraft.apply(made, "linearize-attention{method=elu}", check="off")
    stored = _stored(made)
    node = next(n for n in stored.graph if n.op.name == "where")
    twice = Builder(stored.graph, node.next, node.loc).op(linalg.matmul, *[node.output] * 2)
    for user in node.output.users:
        if user is not twice.producer:
            user.set_operand(list(user.inputs).index(node.output), twice)
    found, (skipped,) = read_mixers(stored)
    assert found == 0
    assert "linear attention: differs by" in skipped.reason


@pytest.mark.parametrize("options", ["window=4", "method=hedgehog"])
def test_the_audit_of_a_file_is_that_of_the_module(options: str) -> None:
    module = language_model()
    made = module.clone()
    regraft.apply(made, f"linearize-attention{{{options}}}", check="off")
    batches = [{"input_ids": RNG.integers(0, VOCABULARY, (2, 24))}]
    wanted = audit_module(made, module, batches)
    found = audit_module(_stored(made), _stored(module), batches)
    assert [x["kind"] for x in found["layers"]] == [x["kind"] for x in wanted["layers"]]
    assert found["verdict"] == wanted["verdict"]
    assert found["state_bytes"] == wanted["state_bytes"]
    np.testing.assert_allclose(found["layers"][0]["kl"], wanted["layers"][0]["kl"], atol=1e-4)
    for name, value in wanted["ablations"].items():
        assert found["ablations"][name] == pytest.approx(value, abs=1e-4)


def test_a_file_gets_states() -> None:
    """What is read from a file is given states, as what was just linearized is."""
    made = language_model()
    regraft.apply(made, "linearize-attention{window=4}", check="off")
    stored = _stored(made)
    regraft.apply(stored, "canonicalize", check="off")
    read_mixers(stored)
    regraft.apply(stored, "carry-states", check="off")
    assert len(stored.states) >= 2
    assert any(node.op in (linear_attention, hybrid_attention) for node in stored.graph)
