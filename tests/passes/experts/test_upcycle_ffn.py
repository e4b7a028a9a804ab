"""The pass `upcycle-ffn`: the model as it was at first, statistics of what is drawn, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops.moe import moe
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.adaptive import margins_of
from regraft.passes.experts.audit import expert_figures
from regraft.passes.experts.dense import Dense
from regraft.passes.experts.made import copies, disturbed, redrawn
from regraft.passes.experts.trained import weights_of_experts
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context, Exact, Lossy, PassResult
from tests.passes.analysis.spelled import spelled

Array = np.ndarray[Any, Any]

FAMILIES = (
    "bert.ts17", "llama.dyn18", "gpt2.ts17", "t5.dyn18", "opt.dyn18", "phi3.dyn18", "vit.dyn18",
    "clip.dyn18", "convnext.ts17", "swin.ts17", "timm_mixer.ts17", "qwen2_moe.dyn18",
    "gated_swiglu_merged.hand", "gated_sliced.hand", "ffn_conv_plain.hand", "ffn_left_weights.hand",
)  # fmt: skip

WEIGHTS = {
    "u": "f32[16, 64]",
    "g": "f32[16, 64]",
    "d": "f32[64, 16]",
    "ub": "f32[64]",
    "db": "f32[16]",
}

PLAIN = """
    %p = matmul(%x, %u)
    %h = add(%ub, %p)
    {act}
    %o = matmul(%a, %d)
    %y = add(%o, %db)"""

GATED = """
    %h = matmul(%x, %g)
    {act}
    %v = matmul(%x, %u)
    %m = mul(%a, %v)
    %o = matmul(%m, %d)
    %y = add(%o, %db)"""

SPELLINGS = {
    "gelu": PLAIN.format(act="%a = gelu(%h)"),
    "relu": PLAIN.format(act="%a = relu(%h)"),
    "relu2": PLAIN.format(act="%r = relu(%h)\n%a = mul(%r, %r)"),
    "swiglu": GATED.format(act="%a = swish(%h)"),
    "geglu": GATED.format(act="%a = gelu(%h) {tanh = true}"),
}


def block(name: str = "swiglu") -> Module:
    return spelled(SPELLINGS[name], weights=WEIGHTS)


def upcycled(module: Module, **options: Any) -> tuple[Module, PassResult]:
    changed = module.clone()
    result = UpcycleFfn(**options).run(changed, Context(seed=options.pop("seed", 0)))
    verify(changed)
    return changed, result


X = {"x": np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)}


def difference(one: Module, other: Module, sample: dict[str, Array], *, oracle: bool) -> float:
    """Returns the largest difference of outputs relative to the largest number of each."""
    got, want = (evaluate(each, sample, oracle=oracle) for each in (one, other))
    errors = [
        np.abs(got[name].astype(np.float64) - want[name]).max() / np.abs(want[name]).max()
        for name in want
        if want[name].dtype.kind == "f"
    ]
    return float(max(errors))


def check_same(changed: Module, module: Module, sample: dict[str, Array]) -> None:
    # f32 sums of a few hundred products round to 2 ** -24 * sqrt(n), the results of layers add up,
    # and CLIP's similarities are 14 times a sum that cancels
    assert difference(changed, module, sample, oracle=False) <= 2e-6
    assert difference(changed, module, sample, oracle=True) <= 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_families_compute_what_they_did(name: str) -> None:
    module = regraft.load(store.load(name))
    regraft.apply(module, "canonicalize,fuse", check="off")
    sample = store.samples(name)
    already = [node.op for node in module.graph].count(moe)
    for options in (
        {"experts": 4, "top_k": 2},
        {"experts": 8, "top_k": 4, "method": "virtual-groups", "groups": 4},
        {"experts": 4, "top_k": 2, "method": "adapter", "rank": 8},
    ):
        changed, result = upcycled(module, **options)
        assert result.stats["blocks"] >= 1
        made = [node.op for node in changed.graph].count(moe) - already
        assert made == result.stats["blocks"]
        check_same(changed, module, sample)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SPELLINGS)
def test_virtual_groups_compute_what_the_block_does(name: str, groups: int) -> None:
    for turns in (1, 2):
        changed, result = upcycled(
            block(name), method="virtual-groups", groups=groups, experts=4 * groups,
            top_k=turns * groups,
        )  # fmt: skip
        assert result.stats["blocks"] == 1
        (up,) = (w for name, w in _weights(changed).items() if name.endswith("experts.up"))
        assert up.shape == (4 * groups, 64 // groups, 16)
        check_same(changed, block(name), X)


def test_a_gain_spread_over_a_gated_block_is_not_the_same() -> None:
    """What public converters do: the cube root on every matrix, the one under `silu` included."""
    changed, _ = upcycled(
        block(), method="virtual-groups", groups=8, experts=16, top_k=8
    )  # fmt: skip
    for name, array in _weights(changed).items():
        gain = {"up": 2.0, "gate": 2.0, "down": 2.0 / 8}.get(name.rpartition(".")[2])
        if gain is not None and ".experts." in f".{name}":
            _set(changed, name, np.multiply(array, np.float32(gain)))
    assert difference(changed, block(), X, oracle=True) > 1e-2


def test_slices_of_a_copy_part_when_the_router_does() -> None:
    """Same output for every token at first, and another one once shards have rows of their own."""
    changed, _ = upcycled(
        block(), method="virtual-groups", groups=2, experts=8, top_k=2
    )  # fmt: skip
    (name,) = (name for name in _weights(changed) if name.endswith("router"))
    rows: Array = _weights(changed)[name]
    np.testing.assert_array_equal(rows[:, ::2], rows[:, 1::2])
    tokens = np.random.default_rng(1).standard_normal((3, 40, 16)).astype(np.float32)
    check_same(changed, block(), {"x": tokens})
    noise = np.random.default_rng(2).standard_normal((16, 8)).astype(np.float32)
    _set(changed, name, rows + noise)
    assert difference(changed, block(), {"x": tokens}, oracle=False) > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": "topk_softmax", "renormalize": False},
        {"scoring": "sigmoid"},
        {"renormalize": False, "router": "zero", "top_k": 1},
        {"renormalize": False, "router": "zero", "method": "virtual-groups"},
        {"scoring": "sigmoid", "renormalize": False, "router": "zero"},
        {"method": "drop", "ratio": 0.0},
        {"method": "noise", "ratio": 0.0},
        {"top_k": 8},
        {"method": "adapter", "renormalize": False, "top_k": 1},
    ],
)
def test_exact_starts_are_exact(options: dict[str, Any]) -> None:
    assert UpcycleFfn(**options).contract == Exact()
    changed, _ = upcycled(block("gelu"), **options)
    check_same(changed, block("gelu"), X)


@pytest.mark.parametrize("options", [{"method": "drop"}, {"method": "noise"}])
def test_starts_that_change_weights_are_lossy(options: dict[str, Any]) -> None:
    assert UpcycleFfn(**options).contract == Lossy("output")
    changed, _ = upcycled(block(), **options)
    assert difference(changed, block(), X, oracle=False) > 1e-3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"renormalize": False}, "do not sum to 1"),
        ({"renormalize": False, "top_k": 1}, "is multiplied by its probability"),
        ({"renormalize": False, "method": "virtual-groups"}, "do not sum to 1"),
        ({"top_k": 9}, "option `top-k`: 9 is not in 1 to 8"),
        ({"method": "virtual-groups", "groups": 4}, "`top-k`: 2 is no multiple of 4 groups"),
        ({"method": "drop", "ratio": 1.5}, "option `ratio`"),
        ({"select": "adaptive"}, "option `select`"),
        ({"select": "adaptive", "method": "lora", "scoring": "sigmoid"}, "option `select`"),
    ],
)
def test_starts_that_cannot_be_the_model_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        upcycled(block(), **options)


def test_a_lossy_start_has_to_be_allowed_and_says_so() -> None:
    options = {"renormalize": False, "router_std": 0.5, "lossy": True}
    assert UpcycleFfn(**options).contract == Lossy("output")  # type: ignore[arg-type]
    changed, _ = upcycled(block(), **options)
    assert difference(changed, block(), X, oracle=True) > 1e-2


def test_adapters_share_one_block() -> None:
    changed, _ = upcycled(block("gelu"), method="adapter", rank=4, experts=8)
    weights = _weights(changed)
    assert sum(array.size for name, array in weights.items() if "experts" in name) == 8 * 2 * 16 * 4
    products = [node for node in changed.graph if node.op.name == "matmul"]
    assert len(products) == 3  # of the block, and the router
    (name,) = (name for name in weights if name.endswith("experts.down"))
    assert not weights[name].any()
    drawn = np.random.default_rng(0).standard_normal((8, 16, 4)).astype(np.float32)
    _set(changed, name, drawn)
    assert difference(changed, block("gelu"), X, oracle=False) > 1e-2
    weights = _weights(changed)
    up, router = (
        next(array for key, array in weights.items() if key.endswith(end)).astype(np.float64)
        for end in ("experts.up", "router")
    )
    dense = evaluate(block("gelu"), X, oracle=True)["y"]
    scores = X["x"].astype(np.float64) @ router
    chosen = np.argsort(-scores, axis=-1, kind="stable")[..., :2]
    share = np.exp(np.take_along_axis(scores, chosen, -1))
    share /= share.sum(-1, keepdims=True)
    want = dense.copy()
    erf = np.vectorize(math.erf)
    for place in np.ndindex(2, 5):
        for expert, weight in zip(chosen[place], share[place], strict=True):
            hidden = up[expert] @ dense[place]
            hidden = hidden / 2 * (1 + erf(hidden / np.sqrt(2)))
            want[place] += weight * (drawn[expert].astype(np.float64) @ hidden)
    got = evaluate(changed, X, oracle=True)["y"]
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()


def test_enough_capacity_drops_nothing_and_less_drops_the_rest() -> None:
    module = block("swiglu")
    options = {"experts": 4, "top_k": 1, "router_std": 1.0}
    changed, _ = upcycled(module, **options, capacity=4.0)
    check_same(changed, module, X)
    assert UpcycleFfn(capacity=1.0).contract == Lossy("output")
    changed, _ = upcycled(module, **options, router="zero", capacity=2.0)
    out = evaluate(changed, X)["y"].reshape(10, 16)
    kept = evaluate(module, X)["y"].reshape(10, 16)
    # all 10 tokens want expert 0, which takes ceil(2 * 10 / 4): what is beyond has no result
    np.testing.assert_allclose(out[:5], kept[:5], atol=1e-4)
    assert not out[5:].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_router_of_centres_begins_even_and_changes_nothing(groups: int) -> None:
    rng = np.random.default_rng(0)
    planted = 4 * rng.standard_normal((4, 16))
    rows = planted[rng.permutation(np.repeat(np.arange(4), 40))] + rng.standard_normal((160, 16))
    sample = {"x": rows.reshape(4, 40, 16).astype(np.float32)}
    module = block("swiglu")
    ctx = Context(samples=[sample], activations=OrtActivations())
    method = "virtual-groups" if groups > 1 else "copy"
    UpcycleFfn(
        experts=4 * groups, top_k=groups, groups=groups, method=method, router="centroid"
    ).run(module, ctx)  # fmt: skip
    check_same(module, block("swiglu"), sample)
    (found,), _ = expert_figures(module, [sample], OrtActivations())
    assert found.worst_load <= 1.05  # every centre has its planted quarter of the tokens


def test_lora_experts_add_what_they_make_of_the_input() -> None:
    changed, _ = upcycled(block("swiglu"), method="lora", rank=4, experts=8)
    check_same(changed, block("swiglu"), X)
    assert UpcycleFfn(method="lora", renormalize=False).contract == Exact()
    weights = _weights(changed)
    (name,) = (name for name in weights if name.endswith("experts.down"))
    drawn = np.random.default_rng(0).standard_normal((8, 16, 4)).astype(np.float32)
    _set(changed, name, drawn)
    up, router = (
        next(array for key, array in weights.items() if key.endswith(end)).astype(np.float64)
        for end in ("experts.up", "router")
    )
    want = evaluate(block("swiglu"), X, oracle=True)["y"]
    x = X["x"].astype(np.float64)
    scores = x @ router
    chosen = np.argsort(-scores, axis=-1, kind="stable")[..., :2]
    share = np.exp(np.take_along_axis(scores, chosen, -1))
    share /= share.sum(-1, keepdims=True)
    for place in np.ndindex(2, 5):
        for expert, weight in zip(chosen[place], share[place], strict=True):
            want[place] += weight * (drawn[expert].astype(np.float64) @ (up[expert] @ x[place]))
    got = evaluate(changed, X, oracle=True)["y"]
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_adaptive_experts_are_those_above_a_threshold_of_the_input(method: str) -> None:
    changed, _ = upcycled(block("swiglu"), method=method, rank=4, experts=8, select="adaptive")
    check_same(changed, block("swiglu"), X)
    rng = np.random.default_rng(0)
    names = {key: name for name in _weights(changed) for key in ADAPTIVE if name.endswith(key)}
    drawn = {}
    for key, name in names.items():
        shape = changed.weights[name].shape
        _set(changed, name, rng.standard_normal(shape).astype(np.float32))
        drawn[key] = changed.weights[name].numpy().astype(np.float64)
    dense = evaluate(block("swiglu"), X, oracle=True)["y"]
    x = X["x"].astype(np.float64)
    read = x if method == "lora" else dense
    scores = np.exp(x @ drawn[".router"])
    probabilities = scores / scores.sum(-1, keepdims=True)
    level = x @ drawn[".threshold"] + drawn[".threshold_bias"]
    beyond = probabilities - 1 / 8 / (1 + np.exp(-level))  # the paper's p - t, t at most 1 / N
    beyond[beyond < 0] = 0
    counts = (beyond > 0).sum(-1)
    assert counts.min() >= 1
    assert counts.max() > counts.min()  # tokens choose as many as they need
    want = dense.copy()
    for place in np.ndindex(2, 5):
        for expert in range(8):
            hidden = drawn["experts.up"][expert] @ read[place]
            if method == "adapter":
                hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
            share = beyond[place][expert] / beyond[place].sum()
            want[place] += share * (drawn["experts.down"][expert] @ hidden)
    got = evaluate(changed, X, oracle=True)["y"]
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()
    assert set(weights_of_experts(changed)) == set(names.values())
    ran = OrtRunner(to_proto(changed))(X)["y"]
    # sums of 64 and 16 products, and the quotient of what is left of probabilities
    assert np.abs(ran - want).max() <= 1024 * np.finfo(np.float32).eps * np.abs(want).max()


def test_equal_probabilities_at_the_largest_threshold_choose_none() -> None:
    changed, _ = upcycled(
        block("swiglu"), method="lora", experts=8, select="adaptive", router="zero"
    )
    (name,) = (name for name in _weights(changed) if name.endswith(".threshold_bias"))
    _set(changed, name, np.full(1, 100, np.float32))  # its sigmoid is 1 in f32
    check_same(changed, block("swiglu"), X)


ADAPTIVE = ("experts.up", "experts.down", ".router", ".threshold", ".threshold_bias")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("rank", [4, 64])
def test_adaptive_experts_are_found_in_half_precision(dtype: str, rank: int) -> None:
    changed, _ = upcycled(block("swiglu"), method="lora", rank=rank, experts=8, select="adaptive")
    names, (margins,) = weights_of_experts(changed), margins_of(changed)
    regraft.apply(changed, f"cast{{dtype={dtype}}}")
    assert weights_of_experts(changed) == names
    (found,) = margins_of(changed)
    assert found.shape == margins.shape
    assert [node.op.name for node in changed.graph].count("moe") == 1


def _weights(module: Module) -> dict[str, Array]:
    return {name: module.weights[name].numpy() for name in module.weights}


def _set(module: Module, name: str, array: Array) -> None:
    module.weights.set(name, ArrayWeight(array))


def dense(hidden: int = 600, channels: int = 96) -> Dense:
    rng = np.random.default_rng(3)

    def drawn(*shape: int) -> Array:
        return (0.3 + rng.standard_normal(shape) * rng.uniform(0.5, 2)).astype(np.float32)

    return Dense(
        drawn(hidden, channels), drawn(channels, hidden), drawn(hidden, channels), drawn(hidden),
        drawn(hidden), drawn(channels),
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("independent", [False, True])
def test_drop_draws_the_fraction_with_the_statistics_of_what_it_replaces(
    ratio: float, independent: bool
) -> None:
    source = dense()
    made = redrawn(copies(source, 4), ratio, (7,), independent=independent)
    count = int(ratio * 600)
    for expert in range(4):
        sets = {name: set(made.drawn[name][expert]) for name in ("up", "gate", "down")}
        assert all(len(chosen) == count for chosen in sets.values())
        if ratio < 1:
            same = sets["up"] == sets["gate"] == sets["down"]
            assert same is not independent
        for name, chosen in sets.items():
            old = getattr(source, name)
            new = made.weights[name][expert]
            if name == "down":
                old, new = old.T, new.T
            differs = np.flatnonzero((old != new).any(1))
            assert set(differs) == chosen
            replaced, drawn = old[list(chosen)].astype(np.float64), new[list(chosen)]
            error = replaced.std() / np.sqrt(replaced.size)
            assert abs(drawn.mean() - replaced.mean()) <= 3 * error
            assert abs(drawn.std() - replaced.std()) <= 3 * error / np.sqrt(2)
    assert (made.weights["down_bias"] == source.down_bias).all()
    others = {tuple(made.drawn["up"][expert]) for expert in range(4)}
    assert len(others) == (4 if ratio < 1 else 1)


def test_nothing_drawn_is_the_copy_to_the_bit() -> None:
    plain = copies(dense(64, 8), 3)
    for made in (
        redrawn(plain, 0.0, (1,), independent=False),
        disturbed(plain, 0.0, 1.0, (1,), independent=True),
    ):
        for name, array in plain.weights.items():
            np.testing.assert_array_equal(made.weights[name], array)


def test_noise_has_its_deviation() -> None:
    plain = copies(dense(), 2)
    made = disturbed(plain, 0.5, 0.25, (1,), independent=False)
    for name in ("up", "gate", "down"):
        change = made.weights[name].astype(np.float64) - plain.weights[name]
        moved = change[change != 0]
        assert moved.size == pytest.approx(change.size / 2, rel=1e-3)  # a sum may round to itself
        assert abs(moved.std() - 0.25) <= 3 * 0.25 / np.sqrt(2 * moved.size)


def test_seeds_reproduce() -> None:
    def run(seed: int) -> dict[str, Array]:
        module = block()
        UpcycleFfn(method="drop").run(module, Context(seed=seed))
        return _weights(module)

    one, again, other = run(1), run(1), run(2)
    assert list(one) == list(again) == list(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, again[name])
        assert (array != other[name]).any() or name == "db" or name.endswith("down_bias")


def test_blocks_that_are_left_alone_say_why() -> None:
    conv = "{strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1], groups = 64}"
    depthwise = f"""
        %h = matmul(%x, %u)
        %t = transpose(%h) {{perm = [0, 2, 1]}}
        %i = reshape(%t) {{shape = [B, 64, 6, 5]}}
        %c = conv(%i, %k) {conv}
        %f = reshape(%c) {{shape = [B, 64, 30]}}
        %r = transpose(%f) {{perm = [0, 2, 1]}}
        %a = gelu(%r)
        %y = matmul(%a, %d)"""
    star = PLAIN.format(act="%r = relu(%h)\n%q = mul(%r, %r)\n%s = mul(%q, 0.9)\n%a = add(%s, 0.4)")
    cases = {
        "a convolution between its layers": spelled(
            depthwise, shape="B, 30, 16", weights={**WEIGHTS, "k": "f32[64, 1, 3, 3]"}
        ),
        "no activation `relu2` with these parameters": spelled(star, weights=WEIGHTS),
        "reorders positions": spelled(
            """
            %h = matmul(%x, %u)
            %a = gelu(%h)
            %t = transpose(%a) {perm = [1, 0, 2]}
            %y = matmul(%t, %d)""",
            weights=WEIGHTS,
        ),
    }
    for reason, module in cases.items():
        before = str(module)
        _, result = upcycled(module)
        assert not result.changed
        assert any(reason in skip.reason for skip in result.skipped), result.skipped
        assert str(module) == before
    _, result = upcycled(block(), method="virtual-groups", groups=3, experts=6, top_k=3)
    assert [skip.reason for skip in result.skipped] == [
        "64 hidden channels are no multiple of 3 groups"
    ]
    _, result = upcycled(block(), keep=("d",))
    assert [skip.reason for skip in result.skipped] == ["kept by option"]


def test_layers_of_the_same_weights_share_their_experts() -> None:
    first = PLAIN.format(act="%a = gelu(%h)").replace("%y", "%w")
    again = first.replace("%w", "%y").replace("matmul(%x", "matmul(%z")
    for name in "phao":
        again = again.replace(f"%{name} ", f"%{name}2 ").replace(f"%{name})", f"%{name}2)")
        again = again.replace(f"%{name},", f"%{name}2,")
    module = spelled(f"{first}\n%z = add(%w, %x)\n{again}", weights=WEIGHTS)
    changed, result = upcycled(module, experts=4)
    assert result.stats["blocks"] == 2
    assert len([name for name in changed.weights if name.endswith("experts.up")]) == 1
    check_same(changed, module, X)


def test_every_second_block() -> None:
    module = regraft.load(store.load("bert.ts17"))
    regraft.apply(module, "canonicalize,fuse", check="off")
    _, result = upcycled(module, every=2)
    assert result.stats["blocks"] == 1
    assert [skip.reason for skip in result.skipped] == ["one block in 2 is rewritten"]


@pytest.mark.parametrize("name", ["gelu", "relu", "relu2", "swiglu", "geglu"])
def test_onnx_runtime_computes_the_block(name: str) -> None:
    changed = block(name)
    # with all checks on: the contract is held
    regraft.apply(changed, "upcycle-ffn{experts=4,top-k=2}")
    for profile in ("ort-cpu", "onnx"):
        (got,) = OrtRunner(to_proto(changed, profile=profile))(X).values()
        want = evaluate(block(name), X)["y"]
        assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
