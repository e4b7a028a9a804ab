"""Exported models of many families: what is pruned equals the masked model (E1, E2)."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fixtures import store
from regraft.frontends.onnx.load import import_model
from regraft.ir.errors import TargetError
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from tests.passes.pruning.checking import TOLERANCE, prune_and_compare

NAMES = store.names()
SAMPLED = NAMES[::12]


def _load(name: str, *, fused: bool) -> Module:
    module = import_model(store.load(name), Path())
    if fused:
        for item in (Canonicalize(), Fuse(), Canonicalize()):
            item.run(module, Context())
    return module


def _check(name: str, *, fused: bool) -> None:
    module = _load(name, fused=fused)
    outcome = prune_and_compare(module, store.samples(name), 0)
    assert outcome.error <= TOLERANCE
    if outcome.pruned and max(np.ptp(np.asarray(a)) for a in store.samples(name).values()) > 0:
        assert outcome.change > 1e-6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", SAMPLED)
def test_pruned_equals_masked(name: str, fused: bool) -> None:
    _check(name, fused=fused)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_pruned_equals_masked(name: str, fused: bool) -> None:
    _check(name, fused=fused)


@pytest.mark.parametrize("name", SAMPLED)
def test_half_of_the_flops_or_a_reason(name: str) -> None:
    module = _load(name, fused=True)
    for item in Coupling(module).pinned:
        assert item.why.op
        assert item.why.axis
        assert item.why.reason
    refused = ""
    try:
        achieved = Prune("flops:0.5").run(module, Context()).stats["achieved"]
    except TargetError as error:
        refused, achieved = str(error), 0.5
    assert achieved == pytest.approx(0.5, rel=0.01)
    assert not refused or ("hint: " in refused and "flops:0.5" in refused)


FAMILIES = sorted({name.split(".")[0] for name in NAMES if not name.endswith(".hand")})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families_reach_half_of_their_flops(family: str) -> None:
    if family == "gpt2_past":
        pytest.skip("its caches are inputs and outputs, which keep their shape")
    name = next(n for n in NAMES if n.startswith(family + "."))
    result = Prune("flops:0.5").run(_load(name, fused=True), Context())
    assert result.stats["achieved"] == pytest.approx(0.5, rel=0.01)
