"""`prune-experts`, `merge-experts` and `moe-to-dense`: what each promises, on planted layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.moe import moe
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.merge_experts import MergeExperts
from regraft.passes.experts.moe_to_dense import MoeToDense
from regraft.passes.experts.prune_experts import PruneExperts
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context
from tests.passes.analysis.spelled import spelled
from tests.passes.experts.test_upcycle_ffn import SPELLINGS, block, check_same

Array = np.ndarray[Any, Any]

E, F, D = 6, 24, 16
WEIGHTS = {
    "r": f"f32[{D}, {E}]",
    "rb": f"f32[{E}]",
    "u": f"f32[{E}, {F}, {D}]",
    "d": f"f32[{E}, {D}, {F}]",
    "g": f"f32[{E}, {F}, {D}]",
    "ub": f"f32[{E}, {F}]",
    "db": f"f32[{E}, {D}]",
}
X = {"x": np.random.default_rng(0).standard_normal((2, 30, D)).astype(np.float32)}


def layer(top_k: int = 2, scoring: str = "softmax", renormalize: bool = True) -> Module:
    return spelled(
        f"""
        %l = matmul(%x, %r)
        %s = add(%l, %rb)
        %y = moe(%x, %s, %u, %d, %g, %ub, %db) {{top_k = {top_k}, scoring = "{scoring}",\
 renormalize = {str(renormalize).lower()}, activation = "silu"}}""",
        weights=WEIGHTS,
    )


def get(module: Module, name: str) -> Array:
    return module.weights[name].numpy()


def put(module: Module, name: str, array: Array) -> None:
    module.weights.set(name, ArrayWeight(array.astype(np.float32)))


def only_moe(graph: Graph) -> Any:
    (node,) = (node for node in graph if node.op is moe)
    return node


def error(one: Module, other: Module) -> float:
    got, want = (evaluate(each, X)["y"] for each in (one, other))
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid"])
@pytest.mark.parametrize("gone", [(0,), (5,), (1, 4)])
def test_dropping_an_expert_is_a_score_of_minus_infinity(
    gone: tuple[int, ...], scoring: str, renormalize: bool
) -> None:
    module, masked = layer(2, scoring, renormalize), layer(2, scoring, renormalize)
    result = PruneExperts(drop=gone).run(module, Context())
    verify(module)
    assert result.stats == {"layers": 1, "experts-removed": len(gone)}
    bias = get(masked, "rb").copy()
    bias[list(gone)] = -np.inf
    put(masked, "rb", bias)
    assert error(module, masked) <= 1e-6
    assert error(module, layer(2, scoring, renormalize)) > 1e-3
    assert only_moe(module.graph).inputs[2].shape == (E - len(gone), F, D)
    # the router's columns are those of the kept experts
    kept = [expert for expert in range(E) if expert not in gone]
    (router,) = (get(module, name) for name in module.weights if get(module, name).shape[0] == D)
    np.testing.assert_array_equal(router, get(layer(), "r")[:, kept])


def test_a_router_that_is_not_linear_is_gathered_from() -> None:
    text = """
        %l = matmul(%x, %r)
        %t = tanh(%l)
        %s = add(%t, %rb)
        %y = moe(%x, %s, %u, %d) {top_k = 2, activation = "relu"}"""
    module, masked = spelled(text, weights=WEIGHTS), spelled(text, weights=WEIGHTS)
    PruneExperts(drop=(3,)).run(module, Context())
    assert "gather" in {node.op.name for node in module.graph}
    put(masked, "rb", np.where(np.arange(E) == 3, -np.inf, get(masked, "rb")))
    assert error(module, masked) <= 1e-6


def test_experts_that_no_token_chooses_cost_nothing() -> None:
    module, before = layer(), layer()
    for each in (module, before):
        put(each, "rb", np.where(np.isin(np.arange(E), [1, 3]), -1e3, get(each, "rb")))
    ctx = Context(samples=[X], activations=OrtActivations())
    result = PruneExperts().run(module, ctx)
    assert list(result.decisions["kept"].values()) == [[0, 2, 4, 5]]
    assert error(module, before) <= 1e-6


@pytest.mark.parametrize("score", ["contribution", "frequency"])
def test_what_counts_least_goes_first(score: str) -> None:
    module = layer()
    bias = get(module, "rb") + 40.0 * np.array([0, -1, 0, 0, -1, 0])  # chosen almost never
    put(module, "rb", bias)
    ctx = Context(samples=[X], activations=OrtActivations())
    result = PruneExperts(experts=4, score=score).run(module, ctx)  # type: ignore[arg-type]
    assert list(result.decisions["kept"].values()) == [[0, 2, 3, 5]]
    replayed = layer()
    PruneExperts(experts=4).run(replayed, Context(replay={"prune-experts": result.decisions}))
    assert only_moe(replayed.graph).inputs[2].shape[0] == 4


def test_fewer_experts_than_are_chosen_are_refused() -> None:
    with pytest.raises(UsageError, match="1 experts of `u` would stay, and 2 are chosen"):
        PruneExperts(drop=(0, 1, 2, 3, 4)).run(layer(), Context())
    with pytest.raises(UsageError, match="9 is no expert of `u`"):
        PruneExperts(drop=(9,)).run(layer(), Context())
    with pytest.raises(UsageError, match="there is no source"):
        PruneExperts(experts=3).run(layer(), Context())


def plant(module: Module, pairs: dict[int, int]) -> None:
    """Makes experts copies of others, their hidden channels in another order."""
    for copy, source in pairs.items():
        order = np.random.default_rng(copy).permutation(F)
        for name in ("u", "g", "ub", "d", "db"):
            array = get(module, name).copy()
            row = array[source]
            array[copy] = row[..., order] if name == "d" else row[order] if name != "db" else row
            put(module, name, array)


@pytest.mark.parametrize(
    ("top_k", "scoring", "renormalize"),
    [(E, "softmax", False), (E, "softmax", True), (E, "topk_softmax", False), (1, "softmax", True)],
)
def test_planted_duplicates_are_found_and_merged(
    top_k: int, scoring: str, renormalize: bool
) -> None:
    module, before = (layer(top_k, scoring, renormalize) for _ in range(2))
    for each in (module, before):
        plant(each, {2: 0, 5: 0, 4: 1})
    result = MergeExperts().run(module, Context())
    verify(module)
    assert list(result.decisions["groups"].values()) == [[[0, 2, 5], [1, 4], [3]]]
    assert result.stats["experts-removed"] == 3
    assert only_moe(module.graph).inputs[2].shape[0] == 3
    assert error(module, before) <= 1e-6


def test_experts_that_differ_stay() -> None:
    module = layer()
    plant(module, {2: 0})
    put(module, "u", get(module, "u") * (1 + 1e-3 * (np.arange(E) == 2))[:, None, None])
    assert not MergeExperts().run(module, Context()).changed
    assert MergeExperts(threshold=0.01).run(module, Context()).stats["experts-removed"] == 1


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "mean"),
        ({}, "expert"),
        ({}, "concat"),
        ({"renormalize": False, "router": "zero"}, "mean"),
        ({"method": "virtual-groups", "groups": 8, "top_k": 8}, "concat"),
    ],
)
def test_upcycled_blocks_turn_back(name: str, options: dict[str, Any], method: str) -> None:
    module = block(name)
    UpcycleFfn(**options).run(module, Context())
    result = MoeToDense(method=method).run(module, Context())  # type: ignore[arg-type]
    verify(module)
    assert result.stats["layers"] == 1
    assert moe not in {node.op for node in module.graph}
    assert not any("router" in name for name in module.weights)
    check_same(module, block(name), {"x": X["x"]})


def test_one_expert_is_what_the_layer_computes_with_one_left() -> None:
    module, left = layer(top_k=1), layer(top_k=1)
    MoeToDense(method="expert", expert=4).run(module, Context())
    PruneExperts(drop=(0, 1, 2, 3, 5)).run(left, Context())
    assert error(module, left) <= 1e-6
