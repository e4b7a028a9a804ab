"""The pass `prune`: targets, criteria, plans, refusals."""

import json
from typing import Any

import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import InputError, TargetError, UnsupportedError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.origins import origins_of
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.manager import CheckMode, PassManager
from regraft.passes.pipeline import parse_pipeline
from regraft.passes.protocol import Context
from regraft.passes.pruning import PASSES, Prune, slicing
from regraft.passes.pruning.cost import MEASURES, cost_model
from regraft.passes.pruning.criteria import score
from regraft.passes.pruning.limits import limits_of
from regraft.passes.pruning.plan import Plan, choice_of, format_ranges, parse_ranges
from tests.passes.analysis.spelled import spelled

LAYERS = 3
WIDTH = 96


def stack(width: int = WIDTH, layers: int = LAYERS) -> Module:
    """Feed-forward layers on a residual stream of 32 channels that no input or output sees."""
    lines, weights, last = ["%e = matmul(%x, %first)"], {"first": "f32[16, 32]"}, "e"
    for i in range(layers):
        lines += [
            f"%h{i} = matmul(%{last}, %up{i})",
            f"%b{i} = add(%h{i}, %bias{i})",
            f"%a{i} = relu(%b{i})",
            f"%d{i} = matmul(%a{i}, %down{i})",
            f"%s{i} = add(%{last}, %d{i})",
        ]
        weights |= {
            f"up{i}": f"f32[32, {width}]", f"bias{i}": f"f32[{width}]",
            f"down{i}": f"f32[{width}, 32]",
        }  # fmt: skip
        last = f"s{i}"
    lines.append(f"%y = matmul(%{last}, %last)")
    return spelled("\n".join(lines), weights=weights | {"last": "f32[32, 4]"})


def run(module: Module, seed: int = 0) -> Any:
    x = np.random.default_rng(seed).standard_normal((2, 3, 16)).astype(np.float32)
    return evaluate(module, {"x": x}, oracle=True)["y"]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("allocation", ["uniform", "global", "isomorphic"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_targets_are_met_within_a_percent(measure: str, allocation: Any, fraction: float) -> None:
    module = stack()
    result = Prune(f"{measure}:{fraction}", allocation=allocation).run(module, Context())
    assert result.changed
    assert result.stats["achieved"] == pytest.approx(fraction, rel=0.01)
    if measure == "params":
        total = sum(int(np.prod(module.weights[name].shape)) for name in module.weights)
        assert total == result.stats["params-after"]
    assert run(module).shape == (2, 3, 4)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_rounded_sizes_are_multiples(allocation: Any) -> None:
    module = stack(width=256, layers=4)
    result = Prune("flops:0.5", allocation=allocation, round_to=8).run(module, Context())
    assert result.stats["achieved"] == pytest.approx(0.5, rel=0.02)
    for name in module.weights:
        if not name.startswith(("first", "last")):
            assert all(size % 8 == 0 for size in module.weights[name].shape), name


def test_cost_model_counts_what_is_left() -> None:
    dense = stack()
    coupling = Coupling(dense)
    for measure in MEASURES:
        model = cost_model(coupling, measure, {"B": 2, "S": 3})
        sizes = np.array([group.size for group in coupling.groups])
        half = sizes // 2
        pruned = stack()
        Prune(f"{measure}:0.5").run(pruned, Context(dims={"B": 2, "S": 3}))
        after = Coupling(pruned)
        small = np.array([group.size for group in after.groups])
        again = cost_model(after, measure, {"B": 2, "S": 3})
        assert model.total(small) == again.total(small)
        step = np.eye(len(half))[0]
        slope = model.total(half + 0.5 * step) - model.total(half - 0.5 * step)
        assert model.gradient(half)[0] == pytest.approx(slope)


def test_kept_units_are_those_of_the_largest_norm() -> None:
    module = stack(layers=1)
    before = {name: module.weights[name].numpy() for name in module.weights}
    norms = sum(
        np.sqrt((before[name] ** 2).sum(axis) if before[name].ndim > 1 else before[name] ** 2)
        for name, axis in (("up0", 0), ("bias0", 0), ("down0", 1))
    )
    result = Prune("params:0.5", criterion="l2", reduction="sum").run(module, Context())
    kept = next(g for g in result.decisions["plan"]["groups"] if g["size"] == WIDTH)
    best = np.sort(np.argsort(-norms)[: kept["new_size"]])
    assert list(parse_ranges(kept["kept"][0])) == best.tolist()


@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "bn-scale"])
def test_criteria_are_repeatable_and_differ(criterion: Any) -> None:
    first, second = (
        Prune("params:0.5", criterion=criterion).run(stack(), Context(seed=3)).decisions
        for _ in range(2)
    )
    assert first == second
    other = Prune("params:0.5", criterion="random").run(stack(), Context(seed=4)).decisions
    assert first != other


def test_batch_norm_gain_decides_where_there_is_one() -> None:
    module = spelled(
        """
        %h = conv(%x, %w1) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
        %n = batch_norm(%h, %gain, %shift, %mean, %var)
        %a = relu(%n)
        %y = conv(%a, %w2) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
        """,
        shape="B, 3, 8, 8",
        weights={"w1": "f32[8, 3, 1, 1]", "gain": "f32[8]", "shift": "f32[8]", "mean": "f32[8]",
                 "var": "f32[8]", "w2": "f32[5, 8, 1, 1]"},
    )  # fmt: skip
    coupling = Coupling(module)
    scores = score(coupling, "bn-scale", "mean", "none", 0)[coupling.groups[0]]
    assert np.allclose(scores[0], np.abs(module.weights["gain"].numpy()))


@pytest.mark.parametrize("normalization", ["none", "mean", "sum", "max", "gaussian", "lamp"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod", "first"])
def test_reductions_and_normalizations_keep_the_order_of_dominance(
    reduction: Any, normalization: Any
) -> None:
    module = stack(layers=1)
    factor = np.linspace(0.1, 3, WIDTH).astype(np.float32)
    for name, shape in (("up0", (1, -1)), ("bias0", (-1,)), ("down0", (-1, 1))):
        ones = np.ones(module.weights[name].shape, np.float32)
        module.weights.set(name, ArrayWeight(ones * factor.reshape(shape)))
    coupling = Coupling(module)
    scores = score(coupling, "l2", reduction, normalization, 0)
    wide = next(group for group in coupling.groups if group.size == WIDTH)
    assert (np.diff(scores[wide][0]) > 0).all()


def test_planted_dead_units_are_found_and_their_removal_changes_nothing() -> None:
    module, rng = stack(width=400), np.random.default_rng(0)
    planted: dict[str, set[int]] = {}
    for i in range(LAYERS):
        dead = rng.permutation(400)[:150]
        planted[f"up{i}"] = set(dead.tolist())
        for name, axis in ((f"up{i}", 1), (f"bias{i}", 0), (f"down{i}", 0)):
            array = module.weights[name].numpy().copy()
            array[(slice(None),) * axis + (dead,)] *= 1e-9
            module.weights.set(name, ArrayWeight(array))
    dense = run(module)
    coupling = Coupling(module)
    wide = [group for group in coupling.groups if group.size == 400]
    model = cost_model(coupling, "params", {})
    sizes = np.array([250 if group in wide else group.size for group in coupling.groups])
    fraction = model.total(sizes) / model.total(limits_of(coupling).high)
    result = Prune(f"params:{fraction}", allocation="global").run(module, Context())
    found = total = 0
    for group in result.decisions["plan"]["groups"]:
        if group["size"] != 400:
            continue
        name = next(
            n for n in planted if group["name"] in str(result.decisions["plan"]["weights"][n])
        )
        kept = set(parse_ranges(group["kept"][0]))
        found += len(planted[name] - kept)
        total += len(planted[name])
    assert total == 150 * LAYERS
    assert found >= 0.99 * total
    assert np.abs(run(module) - dense).max() <= 1e-5 * np.abs(dense).max()


def test_a_plan_applies_to_another_checkpoint() -> None:
    first = stack()
    plan = json.loads(json.dumps(Prune("params:0.5").run(first, Context()).decisions["plan"]))
    second = stack()
    for name in second.weights:
        second.weights.set(name, ArrayWeight(second.weights[name].numpy() * 2))
    again = Prune("params:0.5", criterion="random").run(
        second, Context(replay={"prune": {"plan": plan}})
    )
    assert again.decisions["plan"] == plan
    for name in second.weights:
        assert np.allclose(second.weights[name].numpy(), 2 * first.weights[name].numpy())


def test_a_plan_of_another_architecture_is_refused() -> None:
    plan = Prune("params:0.5").run(stack(), Context()).decisions["plan"]
    for other in (stack(width=64), stack(layers=2)):
        with pytest.raises(InputError, match="the pruning plan does not fit"):
            choice_of(Plan.from_json(plan), Coupling(other))


@pytest.mark.parametrize("document", [{}, {"version": 2}, {"version": 1, "groups": [{}]}])
def test_a_document_that_is_no_plan_is_refused(document: Any) -> None:
    with pytest.raises(InputError, match="plan"):
        Plan.from_json(document)


def test_sliced_weights_know_where_their_elements_came_from() -> None:
    module = stack()
    before = {name: module.weights[name].numpy().copy() for name in module.weights}
    Prune("params:0.5").run(module, Context())
    seen = 0
    for name in module.weights:
        derived = module.weights[name]
        if not isinstance(derived, DerivedWeight):
            continue
        (origin,) = origins_of(derived.tree)
        assert origin.source == name
        flat = derived.numpy().reshape(-1)[origin.target]
        assert np.array_equal(flat, before[name].reshape(-1)[origin.positions])
        seen += 1
    assert seen == len(before)


def test_pruning_again_goes_on_from_where_it_was() -> None:
    module = stack()
    for _ in range(2):
        result = Prune("params:0.7").run(module, Context())
        assert result.stats["achieved"] == pytest.approx(0.7, rel=0.01)
    assert np.isfinite(run(module)).all()


def test_pinned_places_are_listed_with_their_reason() -> None:
    result = Prune("params:0.5").run(stack(), Context())
    reasons = [skip.reason for skip in result.skipped]
    assert any("first axis 0" in r and "it is an input of the graph" in r for r in reasons)
    assert any("last axis 1" in r and "it is an output of the graph" in r for r in reasons)


def test_a_target_out_of_reach_names_the_nearest_and_what_stops_it() -> None:
    with pytest.raises(TargetError) as caught:
        Prune("flops:0.001").run(stack(), Context())
    assert caught.value.exit_code == 4
    assert "is nearest" in caught.value.message
    assert "input of the graph" in str(caught.value.hint)


def test_a_target_between_two_sizes_names_the_granularity() -> None:
    with pytest.raises(TargetError) as caught:
        Prune("params:0.62").run(stack(width=3, layers=1), Context())
    assert "too small" in str(caught.value.hint)


def test_a_module_without_weights_is_refused() -> None:
    with pytest.raises(TargetError, match="every axis is pinned"):
        Prune("flops:0.5").run(spelled("%y = relu(%x)"), Context())


@pytest.mark.parametrize("target", ["flops", "flops:2", "flops:0", "time:0.5", "flops:x"])
def test_a_wrong_target_is_a_usage_error(target: str) -> None:
    with pytest.raises(UsageError, match="no target"):
        Prune(target).run(stack(), Context())


def test_weights_to_keep_keep_their_shape() -> None:
    module = stack()
    before = {name: module.weights[name].shape for name in module.weights}
    result = Prune("params:0.8", keep=("*p1", "first")).run(module, Context())
    assert result.stats["achieved"] == pytest.approx(0.8, rel=0.01)
    assert {n for n in before if module.weights[n].shape == before[n]} == {
        "first", "up1", "bias1", "down1", "last",
    }  # fmt: skip


def test_a_weight_to_keep_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="names no weight") as caught:
        Prune("params:0.8", keep=("up7",)).run(stack(), Context())
    assert "did you mean `up" in str(caught.value.hint)


def test_options_read_from_a_pipeline() -> None:
    (item,) = parse_pipeline("prune{target=flops:0.5,criterion=l1,round-to=8}", PASSES)
    assert item == Prune("flops:0.5", criterion="l1", round_to=8)


@pytest.mark.parametrize("positions", [[0], [0, 1, 2], [1, 3, 4, 9], list(range(5, 40))])
def test_ranges_read_back(positions: list[int]) -> None:
    assert list(parse_ranges(format_ranges(positions))) == positions


def test_no_layer_is_cut_to_the_ground_because_its_scores_are_small() -> None:
    module = stack(width=400)
    for name in ("up1", "bias1", "down1"):
        module.weights.set(name, ArrayWeight(module.weights[name].numpy() * np.float32(1e-6)))
    result = Prune("params:0.6", allocation="global", normalization="none").run(module, Context())
    assert module.weights["up1"].shape[1] == 200
    assert result.stats["least-kept"] == 0.5
    assert result.stats["achieved"] == pytest.approx(0.6, rel=0.01)


def test_the_floor_gives_way_where_the_target_needs_it_unless_it_was_asked_for() -> None:
    result = Prune("params:0.01").run(stack(), Context())
    assert result.stats["achieved"] == pytest.approx(0.01, rel=0.01)
    assert result.stats["least-kept"] < 0.1
    assert Prune("params:0.2").run(stack(), Context()).stats["least-kept"] < 0.5
    with pytest.raises(TargetError) as caught:
        Prune("params:0.01", min_keep=0.1).run(stack(), Context())
    assert "`min-keep` holds 0.1" in str(caught.value.hint)


@pytest.mark.parametrize("min_keep", [-0.1, 1.5])
def test_a_floor_that_is_no_fraction_is_a_usage_error(min_keep: float) -> None:
    with pytest.raises(UsageError, match="min-keep"):
        Prune("params:0.5", min_keep=min_keep).run(stack(), Context())


@pytest.mark.parametrize("check", list(CheckMode))
def test_a_plan_that_inference_contradicts_is_refused_and_undone(
    check: CheckMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stack()
    before, y = str(module), run(module)
    sound = slicing._Slicer.shape

    def lying(self: Any, value: Any) -> Any:
        shape = sound(self, value)
        return (*shape[:-1], shape[-1] + 1) if shape and value.name == "a2" else shape

    monkeypatch.setattr(slicing._Slicer, "shape", lying)
    with pytest.raises(UnsupportedError) as caught:
        PassManager(Context(), check).run(module, [Prune("params:0.5")])
    assert "relu `a2.pruned`" in caught.value.message
    assert "of 96" in caught.value.message
    assert "axis 2 has" in caught.value.message
    assert "keep=[up2]" in str(caught.value.hint)
    assert str(module) == before
    assert np.array_equal(run(module), y)
