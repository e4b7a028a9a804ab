"""Multiples by kind of axis and target, and layouts that configs state."""

import tomllib
from importlib import resources
from typing import Any

import numpy as np
import pytest

from benchmarks.prune_models import encoder, residual_network
from regraft.emission import BUILT
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.pipeline import format_pipeline, parse_pipeline
from regraft.passes.protocol import Context
from regraft.passes.pruning import PASSES, Prune
from regraft.passes.pruning.limits import KINDS, RoundTo, kind_of, limits_of, multiples_of
from tests.passes.pruning.test_prune import stack


@pytest.fixture(scope="module")
def small_encoder() -> Module:
    return encoder(3, 384, 100)


def sizes_of(module: Module) -> dict[str, set[int]]:
    """Returns the sizes of groups by kind."""
    coupling = Coupling(module)
    found: dict[str, set[int]] = {}
    for group in coupling.groups:
        found.setdefault(kind_of(coupling, group), set()).add(group.size)
    return found


def test_every_target_has_multiples_of_every_kind() -> None:
    file = resources.files("regraft.passes.pruning") / "multiples.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    assert set(table) == set(BUILT)
    for row in table.values():
        assert set(row) == set(KINDS)
        assert all(isinstance(multiple, int) and multiple >= 1 for multiple in row.values())


def test_groups_have_kinds(small_encoder: Module) -> None:
    assert sizes_of(small_encoder) == {
        "heads": {6}, "head-size": {64}, "widths": {384, 1536}
    }  # fmt: skip
    assert set(sizes_of(residual_network())) == {"channels"}
    assert set(sizes_of(stack())) == {"widths"}


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda", "triton"])
def test_auto_takes_the_multiples_of_the_target(small_encoder: Module, target: str) -> None:
    multiples = multiples_of("auto", target)
    module = small_encoder.clone()
    result = Prune("flops:0.5", round_to="auto").run(module, Context(target=target))
    assert result.stats["achieved"] == pytest.approx(0.5, rel=0.02)
    sizes = sizes_of(module)
    for size in sizes["widths"] - {384, 1536}:
        assert size % multiples["widths"] == 0
    for size in sizes["head-size"] - {64}:
        assert size % multiples["head-size"] == 0
    assert sizes["widths"] != {384, 1536}


def test_multiples_by_axis(small_encoder: Module) -> None:
    module = small_encoder.clone()
    option = ("heads:2", "head-size:16", "widths:48")
    Prune("flops:0.5", round_to=option, criterion="random").run(module, Context())
    sizes = sizes_of(module)
    assert all(size % 2 == 0 for size in sizes["heads"])
    assert all(size % 16 == 0 for size in sizes["head-size"])
    assert all(size % 48 == 0 for size in sizes["widths"])


def test_a_multiple_leaves_other_kinds_free() -> None:
    coupling = Coupling(residual_network())
    assert set(limits_of(coupling, multiples_of(("widths:16",), "onnx")).step) == {1}
    assert set(limits_of(coupling, multiples_of(("channels:16",), "onnx")).step) == {16}


@pytest.mark.parametrize("multiple", [8, 24, 64, 128, 512])
def test_one_multiple_holds_for_every_innermost_axis(small_encoder: Module, multiple: int) -> None:
    """Groups smaller than it stay whole; heads go where what they are merged into is a multiple."""
    module = small_encoder.clone()
    Prune("flops:0.8", round_to=multiple).run(module, Context())
    sizes = sizes_of(module)
    whole = {"widths": {384, 1536}, "head-size": {64}}
    for kind, full in whole.items():
        assert all(size % multiple == 0 for size in sizes[kind] - full), (kind, sizes)
    merged = {module.weights[f"l{i}.q.w"].shape[1] for i in range(3)}
    assert all(width % multiple == 0 for width in merged - {384})
    assert sizes["widths"] != whole["widths"]


def test_advice_halves_for_small_groups_and_a_demand_does_not() -> None:
    module = encoder(1, 128, 100)  # two heads of 64
    options: tuple[RoundTo, ...] = ("auto", ("widths:64", "head-size:8"))
    for option in options:
        limits = limits_of(Coupling(module), multiples_of(option, "torch"))
        assert max(limits.step) == 64
    small = encoder(1, 64, 100)
    assert 64 in limits_of(Coupling(small), multiples_of(64, "torch")).step
    advised = limits_of(Coupling(small), multiples_of("auto", "torch"))
    assert (2 * advised.step <= np.maximum(advised.high, 2)).all()


@pytest.mark.parametrize("option", [0, -8, ("widths",), ("width:8",), ("widths:0",), ("heads:x",)])
def test_a_wrong_multiple_is_a_usage_error(option: Any) -> None:
    with pytest.raises(UsageError, match="round-to"):
        Prune("flops:0.5", round_to=option).run(stack(), Context())


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("auto", "auto"), ("[channels:8,heads:2]", ("channels:8", "heads:2"))],
)
def test_multiples_read_from_a_pipeline(text: str, value: Any) -> None:
    line = f"prune{{target=flops:0.5,round-to={text}}}"
    (item,) = parse_pipeline(line, PASSES)
    assert item == Prune("flops:0.5", round_to=value)
    (again,) = parse_pipeline(format_pipeline([item]), PASSES)
    assert again == item


@pytest.mark.parametrize(("options", "target"), [({"layout": "alike"}, "onnx"), ({}, "hf")])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_alike_layers_keep_whole_heads_and_equal_widths(
    small_encoder: Module, options: Any, target: str, allocation: Any
) -> None:
    module = small_encoder.clone()
    item = Prune("flops:0.6", criterion="l1", allocation=allocation, min_keep=0.1, **options)
    result = item.run(module, Context(target=target))
    assert result.stats["achieved"] == pytest.approx(0.6, rel=0.01)
    sizes = sizes_of(module)
    assert sizes["head-size"] == {64}
    (heads,) = sizes["heads"]
    assert len(sizes["widths"]) == 2  # hidden, and feed-forward
    assert 64 * heads in sizes["widths"]
    assert heads < 6
    shapes = {name: module.weights[name].shape for name in module.weights}
    for name, shape in shapes.items():
        if name.startswith("l0."):
            assert shape == shapes["l1." + name[3:]] == shapes["l2." + name[3:]]


def test_free_layers_differ(small_encoder: Module) -> None:
    module = small_encoder.clone()
    Prune("flops:0.6", criterion="l1", allocation="global").run(module, Context())
    shapes = {module.weights[f"l{i}.up.w"].shape for i in range(3)}
    assert len(shapes) > 1


def test_alike_plans_respect_what_is_kept(small_encoder: Module) -> None:
    module = small_encoder.clone()
    item = Prune("flops:0.8", layout="alike", keep=("words", "*.q.w"))
    item.run(module, Context())
    assert module.weights["words"].shape == (100, 384)
    ups = {module.weights[f"l{i}.up.w"].shape for i in range(3)}
    assert len(ups) == 1
    assert np.prod(next(iter(ups))) < 384 * 1536
