"""The pass `partition-ffn`: with all experts the model, parts, routers, figures, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.constants import constant_of
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.flops import flops_of
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops.moe import moe
from regraft.ir.verify import verify
from regraft.passes.experts.dense import Dense
from regraft.passes.experts.evidence import Evidence, hidden_of, responses
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.experts.parts import (
    Parts,
    assigned,
    balanced,
    drawn,
    equal_sizes,
    grouped,
    ranked,
    rising_sizes,
)
from regraft.passes.experts.routers import (
    agreement,
    competition_router,
    mean_router,
    random_router,
    reconstruction_error,
    winners,
)
from regraft.passes.protocol import Context, Exact, Lossy, PassResult
from tests.passes.experts.test_upcycle_ffn import FAMILIES, SPELLINGS, X, block

Array = np.ndarray[Any, Any]

_F32, _F64 = 2e-6, 1e-12
"""CLIP's similarities are 14 times a sum of terms that cancel: 1e-6 is a draw of its noise."""
SAMPLES = [
    {"x": np.random.default_rng(seed).standard_normal((2, 20, 16)).astype(np.float32)}
    for seed in range(6)
]


def partitioned(module: Module, samples: Any = (), **options: Any) -> tuple[Module, PassResult]:
    changed = module.clone()
    ctx = Context(samples=samples, activations=OrtActivations())
    result = PartitionFfn(**options).run(changed, ctx)
    verify(changed)
    return changed, result


def _experts(module: Module) -> list[Node]:
    return [node for node in module.graph if node.op is moe]


def _worst(got: dict[str, Array], want: dict[str, Array]) -> float:
    return max(
        float(np.abs(got[name] - array).max() / (np.abs(array).max() or 1))
        for name, array in want.items()
        if array.dtype.kind == "f"
    )


def _assert_same(changed: Module, module: Module, sample: dict[str, Array]) -> None:
    assert _worst(evaluate(changed, sample), evaluate(module, sample)) <= _F32
    got = evaluate(changed, sample, oracle=True)
    assert _worst(got, evaluate(module, sample, oracle=True)) <= _F64


@pytest.mark.parametrize(
    "options",
    [
        {"method": "random"},
        {"method": "cluster", "shared": 2},
        {"method": "cluster", "sizes": "rising", "experts": 5},
        {"method": "coactivation", "compensate": True},
        {"method": "rate", "shared": 3, "router": "representative", "compensate": True},
        {"method": "random", "router": "centroid", "experts": 6},
        {"method": "cluster", "router": "mean", "rescale": True},
        {"method": "random", "router": "zero", "experts": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("spelling", sorted(SPELLINGS))
def test_all_experts_together_are_the_block(spelling: str, options: dict[str, Any]) -> None:
    module = block(spelling)
    changed, result = partitioned(module, SAMPLES, **options)
    assert result.stats["blocks"] == 1
    assert PartitionFfn(**options).contract == Exact()
    _assert_same(changed, module, X)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_the_same_with_all_experts(name: str) -> None:
    module = regraft.load(store.load(name))
    regraft.apply(module, "canonicalize,fuse", check="off")
    changed, result = partitioned(module, experts=4, shared=1, method="random", router="mean")
    assert result.changed or "moe" in name
    _assert_same(changed, module, store.samples(name))


def test_it_runs_in_onnx_runtime_as_in_evaluation() -> None:
    changed, _ = partitioned(block("geglu"), SAMPLES, experts=5, top_k=2, sizes="rising",
                             method="rate", router="representative", compensate=True)  # fmt: skip
    for profile in ("ort-cpu", "onnx"):
        got = OrtRunner(to_proto(changed, profile=profile))(X)
        assert _worst(got, evaluate(changed, X)) <= 1e-5


@pytest.mark.parametrize("method", ["random", "cluster", "coactivation", "rate"])
def test_every_channel_is_in_one_part(method: str) -> None:
    rng = np.random.default_rng(0)
    features, importance = rng.standard_normal((50, 7)), rng.random(50)
    sizes = rising_sizes(50 - 6, 5)
    parts = {
        "random": lambda: drawn(50, 6, sizes, rng),
        "cluster": lambda: grouped(features, importance, 6, sizes, rng),
        "coactivation": lambda: grouped(features, importance, 6, sizes, rng),
        "rate": lambda: ranked(importance, 6, sizes),
    }[method]()
    assert parts.widths == tuple(sizes)
    everyone = np.concatenate([parts.shared, *parts.experts])
    assert sorted(everyone.tolist()) == list(range(50))


def test_ranked_shares_the_most_important_and_deals_evenly() -> None:
    importance = np.random.default_rng(0).random(64)
    parts = ranked(importance, 8, equal_sizes(56, 7))
    assert set(parts.shared.tolist()) == set(np.argsort(-importance)[:8].tolist())
    sums = [importance[own].sum() for own in parts.experts]
    assert max(sums) - min(sums) <= importance.max()


def test_unequal_sizes_rise_and_sum_up() -> None:
    for hidden, parts in ((352, 8), (3072, 16), (50, 7)):
        sizes = rising_sizes(hidden, parts)
        assert sum(sizes) == hidden
        assert sizes == sorted(sizes)
        assert sizes[-1] / sizes[0] == pytest.approx(3, rel=0.4)
    assert equal_sizes(10, 4) == [3, 3, 2, 2]


def test_assignment_is_not_improved_by_any_exchange() -> None:
    cost = np.random.default_rng(0).random((40, 4))
    owner = assigned(cost, [10] * 4)
    assert np.bincount(owner).tolist() == [10] * 4
    own = cost[np.arange(40), owner]
    for i in range(40):
        for j in range(40):
            assert cost[i, owner[j]] + cost[j, owner[i]] >= own[i] + own[j] - 1e-12


def test_balanced_groups_find_planted_ones() -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((5, 12))
    planted = rng.permutation(np.repeat(np.arange(5), 20))
    rows = centres[planted] + 0.05 * rng.standard_normal((100, 12))
    owner = balanced(rows, rows[[int(np.flatnonzero(planted == g)[0]) for g in range(5)]], [20] * 5)
    assert (owner == planted).all()


def _planted() -> tuple[Dense, Evidence, Parts]:
    """A block of 4 x 8 channels, of which each token excites mostly those of one part."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((16, 16)))[0][:4]
    up = np.repeat(directions, 8, 0) + 0.1 * rng.standard_normal((32, 16))
    dense = Dense(up.astype(np.float32), rng.standard_normal((16, 32)).astype(np.float32))
    x = 3 * directions[rng.integers(0, 4, 600)] + 0.5 * rng.standard_normal((600, 16))
    rows = x.astype(np.float32)
    evidence = Evidence(rows, hidden_of(dense, "relu", rows), np.zeros(600, np.int64))
    return dense, evidence, Parts(np.zeros(0, int), tuple(np.split(np.arange(32), 4)))


def test_mean_router_is_the_mean_of_the_rows() -> None:
    dense, _, parts = _planted()
    router = mean_router(parts, dense)
    assert router.rows is not None
    for row, own in zip(router.rows, parts.experts, strict=True):
        np.testing.assert_allclose(row, dense.up[own].mean(0, dtype=np.float64), rtol=1e-6)


def test_mean_router_finds_strong_experts_better_than_a_random_one() -> None:
    dense, evidence, parts = _planted()
    won = winners(responses(evidence.hidden, dense.down, parts.experts), 1)
    x = evidence.x.astype(np.float64)
    mean = mean_router(parts, dense).rows
    assert mean is not None
    drawn_ = [
        random_router(parts, dense, 1.0, np.random.default_rng(seed)).rows for seed in range(9)
    ]
    by_chance = max(agreement(x @ rows.T, won, 1) for rows in drawn_ if rows is not None)
    assert agreement(x @ mean.T, won, 1) > max(0.9, by_chance)


def test_competition_is_the_best_choice_and_is_learnt() -> None:
    dense, evidence, parts = _planted()
    strength = responses(evidence.hidden, dense.down, parts.experts)
    won = winners(strength, 2)
    # the set of winners is that of the largest norms, exactly
    norms = np.stack(
        [np.linalg.norm(evidence.hidden[:, own].astype(np.float64) @ dense.down[:, own].T, axis=1)
         for own in parts.experts], 1,
    )  # fmt: skip
    assert (won == winners(norms, 2)).all()
    errors = {"oracle": _error(dense, evidence, parts, won)}
    x = evidence.x.astype(np.float64)
    router = competition_router(parts, dense, evidence, 2, centred=False)
    assert router.rows is not None
    assert router.bias is not None
    assert router.agreement is not None
    assert router.agreement > 0.8
    errors["competition"] = _error(
        dense, evidence, parts, winners(x @ router.rows.T + router.bias, 2)
    )
    for seed in range(5):
        rows = random_router(parts, dense, 1.0, np.random.default_rng(seed)).rows
        assert rows is not None
        errors[f"random {seed}"] = _error(dense, evidence, parts, winners(x @ rows.T, 2))
    assert errors["oracle"] == min(errors.values())
    assert errors["competition"] < min(v for k, v in errors.items() if k.startswith("random"))


def _error(dense: Dense, evidence: Evidence, parts: Parts, taken: Array) -> float:
    return reconstruction_error(evidence.hidden, dense.down, parts.experts, taken, centred=False)


@pytest.mark.parametrize("spelling", ["relu", "swiglu"])
def test_active_flops_are_the_active_fraction(spelling: str) -> None:
    module = block(spelling)
    whole = _ffn_flops(module)
    changed, result = partitioned(module, experts=8, shared=2, top_k=3, method="random")
    assert len(_experts(changed)) == 1
    router = 2 * 10 * 16 * 6  # 10 tokens of 16 channels, 6 routed experts
    assert _ffn_flops(changed) - router == pytest.approx(whole * 5 / 8)
    assert result.stats["active-fraction"] == 5 / 8
    assert PartitionFfn(experts=8, top_k=3).contract == Lossy("output")


def _ffn_flops(module: Module) -> float:
    from regraft.ir.dims import bind

    found = 0.0
    for node in module.graph:
        if node.op.name in ("matmul", "moe"):
            flops = flops_of(node)
            assert flops is not None
            found += float(bind(flops, {"B": 2, "S": 5}))  # type: ignore[arg-type]
    return found


def test_what_is_not_chosen_is_missing_and_nothing_else() -> None:
    module = block("relu")
    changed, _ = partitioned(module, SAMPLES, experts=8, top_k=3, method="coactivation")
    (node,) = _experts(changed)
    weights = {
        name: constant_of(value, 1 << 40)
        for name, value in zip([each.name for each in moe.operands], node.inputs, strict=False)
        if value is not None
    }
    assert (weights["weight_gain"] == 0).all()
    (probe,) = OrtActivations().activations(changed, [node.inputs[0], node.inputs[1]], [X])
    x, scores = (probe[node.inputs[idx]].reshape(-1, size) for idx, size in ((0, 16), (1, 8)))
    taken = winners(scores, 3)
    hidden = [np.maximum(x @ weights["up"][e].T + weights["up_bias"][e], 0) for e in range(8)]
    want = sum(taken[:, e, None] * (hidden[e] @ weights["down"][e].T) for e in range(8))
    want = want + constant_of(_down_bias(module), 1 << 40)
    got = evaluate(changed, X)["y"].reshape(-1, 16)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def _down_bias(module: Module) -> Any:
    return module.graph.outputs[0].producer.inputs[1]  # type: ignore[union-attr]


def test_compensation_takes_the_mean_out_of_what_is_lost() -> None:
    module = block("relu")  # whose hidden channels are not zero on mean
    errors = {}
    for compensate in (False, True):
        # the same experts for every token, so that the loss of one is its variance, or its square
        changed, result = partitioned(
            module, SAMPLES, experts=8, top_k=4, method="rate", compensate=compensate, router="zero"
        )
        gaps = [evaluate(changed, each)["y"] - evaluate(module, each)["y"] for each in SAMPLES]
        errors[compensate] = np.concatenate(gaps).reshape(-1, 16)
        assert result.stats["error-of-oracle"] <= result.stats["error-of-router"]
    assert np.abs(errors[True].mean(0)).max() <= 1e-4 * np.abs(errors[False].mean(0)).max()
    assert np.square(errors[True]).sum() < np.square(errors[False]).sum()


def test_top_p_takes_more_experts_the_higher_it_is() -> None:
    module = block("relu")
    previous = np.inf
    for threshold in (0.2, 0.5, 0.8, 0.999):
        changed, _ = partitioned(
            module, SAMPLES, experts=6, method="rate", select="top_p", threshold=threshold,
            router="competition", top_k=6,
        )  # fmt: skip
        error = _worst(evaluate(changed, X), evaluate(module, X))
        assert error <= previous * 1.2
        previous = error
    assert previous < 0.5


def test_the_same_seed_gives_the_same_parts() -> None:
    module = block("swiglu")
    first, second = (partitioned(module, experts=4, method="random")[0] for _ in range(2))
    assert [w.tobytes() for w in _arrays(first)] == [w.tobytes() for w in _arrays(second)]


def _arrays(module: Module) -> list[Array]:
    return [module.weights[name].numpy() for name in module.weights]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 8, "top_k": 9}, "`top-k`"),
        ({"experts": 4, "shared": 4}, "`shared`"),
        ({"select": "top_p"}, "`threshold`"),
        ({"threshold": 0.5}, "`threshold`"),
        ({"method": "rate"}, "samples"),
        ({"method": "gradient"}, "gradients"),
        ({"router": "competition"}, "samples"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        partitioned(block(), **options)


def test_blocks_that_are_too_narrow_are_left_alone() -> None:
    _, result = partitioned(block(), experts=40)
    assert not result.changed
    assert "too few" in result.skipped[0].reason
