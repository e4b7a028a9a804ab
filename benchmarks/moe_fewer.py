"""Layers of experts with fewer of them, in whole models: what must not change does not.

The models are upcycled by `drop` with routers of large deviation: experts and routes differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import regraft
from benchmarks.fixtures import store
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held
from benchmarks.moe_identity import worst_difference
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.merge_experts import MergeExperts
from regraft.passes.experts.prune_experts import PruneExperts
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context

_MODELS = ("opt.dyn18", "gpt2.ts17", "llama.dyn18", "bert.ts17", "vit.dyn18", "t5.dyn18")
_EXPERTS = 6
_BAR = 1e-6


def _experts(name: str, top_k: int) -> Module:
    module = regraft.load(store.load(name))
    regraft.apply(module, "canonicalize,fuse", check="off")
    UpcycleFfn(
        experts=_EXPERTS, top_k=top_k, method="drop", router_std=1.0, lossy=True
    ).run(module, Context())  # fmt: skip
    return module


def _layers(module: Module) -> list[Node]:
    return [node for node in module.graph if node.op is moe.moe]


def _without(module: Module, expert: int) -> Module:
    """Returns the model with a score of minus infinity for one expert of every layer."""
    masked = module.clone()
    for node in _layers(masked):
        b = Builder(masked.graph, node)
        bias = np.zeros(_EXPERTS)
        bias[expert] = -np.inf
        operands = [*node.inputs, *[None] * (8 - len(node.inputs))][:8]
        result = b.op(moe.moe, *operands, b.constant(bias, node.output.dtype), **node.attrs)
        masked.graph.replace(node, [result])
    return masked


def _dropped(settings: Settings) -> Iterator[Row]:
    for name in _MODELS:
        module, sample = _experts(name, 2), store.samples(name)
        before = evaluate(module, sample)
        errors, changes = [], []
        for expert in range(_EXPERTS):
            pruned = module.clone()
            PruneExperts(drop=(expert,)).run(pruned, Context())
            got = evaluate(pruned, sample)
            errors.append(worst_difference(got, evaluate(_without(module, expert), sample)))
            changes.append(worst_difference(got, before))
        yield at_most(
            f"{name}: an expert dropped against a score of minus infinity", max(errors), _BAR,
            "relative", f"the worst of {_EXPERTS}",
        )  # fmt: skip
        yield at_least(
            f"{name}: what dropping the one that counts most changes",
            max(changes),
            1e-4,
            "relative",
        )


def _plant(module: Module, copies: dict[int, int]) -> None:
    """Makes experts copies of others, with their hidden channels in another order."""
    names = [each.name for each in moe.moe.operands]
    for node in _layers(module):
        for name, value in list(zip(names, node.inputs, strict=False))[2:]:
            array = constant_of(value, 1 << 40)
            if value is None or array is None:
                continue
            made = array.copy()
            for copy, source in copies.items():
                hidden = made.shape[-1] if name == "down" else made.shape[1]
                order = np.random.default_rng(copy).permutation(hidden)
                row = array[source]
                if name == "down":
                    made[copy] = row[:, order]
                else:
                    made[copy] = row if name == "down_bias" else row[order]
            assert value.producer is not None, "an expert's weight is a constant"
            module.weights.set(value.producer.attrs["name"], ArrayWeight(made))


def _merged(settings: Settings) -> Iterator[Row]:
    want = [[0, 2, 5], [1, 4], [3]]
    for name in _MODELS:
        for top_k in (1, _EXPERTS):
            module, sample = _experts(name, top_k), store.samples(name)
            _plant(module, {2: 0, 5: 0, 4: 1})
            merged = module.clone()
            result = MergeExperts().run(merged, Context())
            found = list(result.decisions["groups"].values())
            whole = len(found) == len(_layers(module)) and all(each == want for each in found)
            yield held(f"{name}, k={top_k}: every planted duplicate is found", whole)
            error = worst_difference(evaluate(merged, sample), evaluate(module, sample))
            yield at_most(f"{name}, k={top_k}: what merging them changes", error, _BAR, "relative")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("dropped", "experts removed, against scores of minus infinity", _dropped),
    Measurement("merged", "planted duplicates among experts", _merged),
)
