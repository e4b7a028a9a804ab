"""`replace-softmax`: which variants change nothing, what each computes, what is not rewritable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.backends.onnx import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.ir.weights import Role
from regraft.passes.attention import ReplaceSoftmax
from regraft.passes.attention.variants import VARIANTS
from regraft.passes.protocol import Exact, Lossy
from tests.conformance.cases import run_ort

Array = np.ndarray[Any, Any]

IDENTITIES = (
    "variant=clipped",
    "variant=gated",
    "variant=gated,share=0.25",
    "variant=entmax,alpha=1",
    "variant=sinks,sink=-10000",
    "variant=softcap,cap=0",
    "variant=scalable",
    "variant=temperature",
    "variant=principled,beta=10",
    "variant=two-pass",
)

BLOCK = """module "block"
symbol B
weight @"q.weight" : f32[12, 12] role=param = random(0)
weight @"q.bias" : f32[12] role=param = random(1)
weight @"kv.weight" : f32[12, 12] role=param = random(2)
graph(%x : f32[B, 5, 12], %mask : f32[B, 1, 1, 5]) {
  %wq = weight @"q.weight"
  %bq = weight @"q.bias"
  %wk = weight @"kv.weight"
  %q0 = matmul(%x, %wq)
  %q1 = add(%q0, %bq)
  %k0 = matmul(%x, %wk)
  %q2 = reshape(%q1) {shape = [B, 5, 3, 4]}
  %k2 = reshape(%k0) {shape = [B, 5, 3, 4]}
  %q = transpose(%q2) {perm = [0, 2, 1, 3]}
  %k = transpose(%k2) {perm = [0, 2, 1, 3]}
  %kt = transpose(%k) {perm = [0, 1, 3, 2]}
  %s0 = matmul(%q, %kt)
  %half = literal f32[] 0.5
  %s1 = mul(%s0, %half)
  %s2 = add(%s1, %mask)
  %p = softmax(%s2) {axis = -1}
  %y = matmul(%p, %k)
  return %y
}
"""


def _inputs(module: Module, batch: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    mask = np.zeros((batch, 1, 1, 5), np.float32)
    mask[0, ..., 3:] = np.finfo(np.float32).min
    return {"x": rng.standard_normal((batch, 5, 12)).astype(np.float32), "mask": mask}


def _replaced(options: str, text: str = BLOCK) -> Module:
    module = parse_module(text)
    (record,) = regraft.apply(module, f"replace-softmax{{{options}}}", check="off")
    assert record.stats["replaced"] == 1
    verify(module)
    return module


def _both(module: Module) -> Array:
    """Returns the output after asserting that the evaluator and ONNX Runtime agree."""
    feeds = _inputs(module)
    (own,) = evaluate(module, feeds).values()
    (emitted,) = run_ort(to_proto(module), list(feeds.values()))
    # sums of 12 products, then of 5
    np.testing.assert_allclose(emitted, own, rtol=0, atol=256 * np.finfo(np.float32).eps)
    return own


@pytest.mark.parametrize("options", IDENTITIES)
def test_identity_parameters_change_nothing(options: str) -> None:
    plain = _both(parse_module(BLOCK))
    made = _both(_replaced(options))
    assert np.abs(plain).max() > 0.1
    np.testing.assert_allclose(made, plain, rtol=0, atol=64 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_everywhere_and_keeps_masks(variant: str) -> None:
    if variant == "selective":
        pytest.skip("needs a causal mask")
    module = _replaced(f"variant={variant}")
    made = _both(module)
    assert np.isfinite(made).all()
    feeds = _inputs(module)
    feeds["x"][0, 3:] = 7.0  # hidden by the mask
    (moved,) = evaluate(module, feeds).values()
    np.testing.assert_allclose(moved[0, :, :3], made[0, :, :3], rtol=0, atol=1e-6)


def test_contracts_follow_the_options() -> None:
    assert isinstance(ReplaceSoftmax.contract, Lossy)
    assert isinstance(ReplaceSoftmax("clipped").contract, Exact)
    assert isinstance(ReplaceSoftmax("clipped", gamma=-0.1).contract, Lossy)
    assert isinstance(ReplaceSoftmax("entmax").contract, Lossy)
    assert isinstance(ReplaceSoftmax("two-pass").contract, Exact)


def test_a_folded_temperature_is_the_explicit_one() -> None:
    explicit = _both(_replaced("variant=temperature,tau=0.7"))
    folded = _replaced("variant=temperature,tau=0.7,fold=true")
    regraft.apply(folded, "canonicalize", check="off")
    (node,) = [n for n in folded.graph if n.op is attention]
    assert node.attrs["scale"] == 0.5
    bound = 1e-6 * np.abs(explicit).max()
    np.testing.assert_allclose(_both(folded), explicit, rtol=0, atol=bound)
    assert np.abs(explicit - _both(parse_module(BLOCK))).max() > 1e-2


def test_what_is_learned_are_parameters_of_the_layer() -> None:
    for variant, names in {
        "gated": {"attention.0.gate", "attention.0.gate_bias"},
        "entmax,learned=true": {"attention.0.alpha"},
        "sinks": {"attention.0.sinks"},
        "scalable": {"attention.0.slope"},
        "qk-norm": {"attention.0.q_norm", "attention.0.k_norm"},
        "threshold": {"attention.0.forget"},
    }.items():
        weights = _replaced(f"variant={variant}").weights
        added = {name for name in weights if name.startswith("attention.")}
        assert added == names
        assert all(weights.role(name) is Role.PARAM for name in added)


def test_parameters_of_the_context_control_are_few() -> None:
    # at the head size of a model, beside projections of 4 x width^2
    module = _replaced("variant=principled")
    added = sum(
        int(np.prod(module.weights[name].numpy().shape))
        for name in module.weights
        if name.startswith("attention.")
    )
    heads, size = 12, 64
    assert 2 * (size * 4 + 4) + heads < 0.005 * 4 * (heads * size) ** 2
    assert added == 2 * (4 * 4 + 4) + 3


def test_layers_are_chosen_by_number_and_unknown_ones_refused() -> None:
    module = regraft.load(store.load("bert.ts17"))
    total = len([n for n in module.graph if n.op is attention])
    assert total == 0
    regraft.apply(module, "replace-softmax{variant=stablemax,layers=[1]}", check="off")
    kinds = [n.attrs["normalizer"] for n in module.graph if n.op is attention]
    assert kinds == ["softmax", "stablemax", *["softmax"] * (len(kinds) - 2)]
    with pytest.raises(UsageError, match="no layer 99"):
        regraft.apply(module, "replace-softmax{variant=stablemax,layers=[99]}", check="off")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("variant=stabelmax", "did you mean `stablemax`"),
        ("variant=stablemax,gamma=0.1", "has none"),
        ("variant=temperature,tau=0", "more than 0"),
        ("variant=entmax,alpha=0.5", "between 1 and 2"),
        ("variant=entmax,alpha=3", "between 1 and 2"),
        ("variant=clipped,gamma=0.1", "0 or less"),
        ("variant=clipped,zeta=0.9", "1 or more"),
        ("variant=clipped,alpha=-1", "0 or more"),
        ("variant=softplus-sharp,power=0", "more than 0"),
        ("variant=selective,budget=-1", "0 or more"),
        ("variant=top-k,k=2.5", "a number of keys"),
        ("variant=clipped,fold=true", "only `temperature` folds"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        regraft.apply(parse_module(BLOCK), f"replace-softmax{{{options}}}", check="off")


LOWERED = BLOCK.replace("f32[B, 1, 1, 5]", "f32[B, 1, 5, 5]")


@pytest.mark.parametrize("options", IDENTITIES)
@pytest.mark.parametrize("number", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_identities_keep_rows_that_a_mask_lowers_as_a_whole(options: str, number: float) -> None:
    """Queries of padding see no key: their weights are what the softmax makes of the numbers."""
    feeds = _inputs(parse_module(BLOCK))
    feeds["mask"] = np.zeros((2, 1, 5, 5), np.float32)
    feeds["mask"][0, :, :2] = number
    feeds["mask"][1, :, 3:, 2:] = number
    source, made = parse_module(LOWERED), _replaced(options, LOWERED)
    for run in (lambda m: evaluate(m, feeds), lambda m: dict(enumerate(_in_ort(m, feeds)))):
        (plain,), (found,) = run(source).values(), run(made).values()
        assert np.abs(plain[0, :, :2]).max() > 0.1
        # sums in other orders; beside -1e4 scores have 10 bits behind the point
        bound = 64 * np.finfo(np.float32).eps if number < -1e4 else 1e-3
        np.testing.assert_allclose(found, plain, rtol=0, atol=bound)


def _in_ort(module: Module, feeds: dict[str, Array]) -> list[Array]:
    return run_ort(to_proto(module), list(feeds.values()))


def test_a_cap_of_nothing_leaves_the_cap_of_the_model() -> None:
    text = BLOCK.replace(
        "%s2 = add(%s1, %mask)",
        "%cap = literal f32[] 2.0\n  %c0 = div(%s1, %cap)\n  %c1 = tanh(%c0)\n"
        "  %c2 = mul(%c1, %cap)\n  %s2 = add(%c2, %mask)",
    )
    (node,) = [n for n in _replaced("variant=softcap,cap=0", text).graph if n.op is attention]
    assert node.attrs["softcap"] == 2.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_finite_at_logits_of_ten_thousand(variant: str) -> None:
    text = """module "half"
graph(%q : f16[1, 2, 6, 8], %k : f16[1, 2, 6, 8], %v : f16[1, 2, 6, 8]) {
  %y = attention(%q, %k, %v) {scale = 1.0, causal_offset = 0}
  return %y
}
"""
    module = _replaced(f"variant={variant}", text)
    rng = np.random.default_rng(0)
    ends = [(35.4 * rng.choice((-1, 1), (1, 2, 6, 8))).astype(np.float16) for _ in "qk"]
    feeds = dict(
        zip("qkv", [*ends, rng.standard_normal((1, 2, 6, 8)).astype(np.float16)], strict=True)
    )
    (own,) = evaluate(module, feeds).values()
    (emitted,) = _in_ort(module, feeds)
    assert np.isfinite(own).all()
    # scores of 1e4 are rounded to 8 in half precision; most rows have one key that takes all
    assert np.abs(emitted.astype(np.float64) - own).max() < 8 * np.finfo(np.float16).eps


UNREAD = {
    "heads are mixed": (
        (
            "%w = transpose(%p) {perm = [0, 2, 3, 1]}\n  %mix = literal f32[3, 3] "
            "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]\n  %m = matmul(%w, %mix)\n"
            "  %t = transpose(%m) {perm = [0, 3, 1, 2]}\n  %y = matmul(%t, %k)"
        ),
        "what becomes of its weights",
    ),
    "element by element": (
        (
            "%w = unsqueeze(%p) {axes = [4]}\n  %u = unsqueeze(%k) {axes = [2]}\n"
            "  %m = mul(%w, %u)\n  %y = reduce_sum(%m) {axes = [3], keepdims = false}"
        ),
        "element by element",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_weights_that_meet_values_otherwise_are_named(name: str) -> None:
    body, reason = UNREAD[name]
    module = parse_module(BLOCK.replace("%y = matmul(%p, %k)", body))
    (record,) = regraft.apply(module, "replace-softmax{variant=two-pass}", check="off")
    assert record.stats["replaced"] == 0
    (found,) = [skip.reason for skip in record.skipped if "attention" in skip.reason]
    assert reason in found


def test_what_is_not_rewritable_says_why() -> None:
    module = parse_module(BLOCK)
    (record,) = regraft.apply(module, "replace-softmax{variant=selective}", check="off")
    assert [skip.reason for skip in record.skipped if "attention" in skip.reason] == [
        "attention: it is not known to be causal: later queries would decide what earlier ones see"
    ]
