"""Families of `transformers` with experts: how many become `moe`, and with which routing.

Every family of the capture coverage, as it computes by default and with its loop over the chosen
experts, and the ONNX fixtures of other exporters.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import regraft
from benchmarks.fixtures import store
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.moe_identity import Outputs, worst_difference
from regraft.ir.errors import InputError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module

_ONNX = (
    "mixtral.ts17", "mixtral.dyn18", "mixtral_positions.dyn23", "qwen2_moe.ts17",
    "qwen2_moe.dyn18", "qwen2_moe_positions.dyn23", "experts_dense.hand", "experts_gathered.hand",
)  # fmt: skip
_DENSE_FIRST = {"deepseek_v2": 1, "deepseek_v3": 1, "glm4_moe": 1, "ernie4_5_moe": 1, "dbrx": 1,
                "jamba": 1}  # fmt: skip
"""Layers of experts of a family's two layers, where it is not both."""
_F64 = 1e-6
"""Relative: factors in f32 are rounded constants of the source."""


def _raised(module: Module, sample: Outputs) -> tuple[list[str], float, list[str]]:
    """Returns the routing of every layer, the difference in f64, and what was left and why."""
    want = evaluate(module, sample, oracle=True)
    records = regraft.apply(module, "canonicalize,fuse", check="off")
    routes = [
        f"{node.attrs['scoring']}{', renormalized' if node.attrs['renormalize'] else ''}"
        f"{', groups' if node.attrs['select'] == 'groups' else ''}"
        for node in module.graph
        if node.op.name == "moe"
    ]
    reasons = [
        str(skip.reason)
        for record in records
        for skip in record.skipped
        if str(skip.reason).startswith(("experts", "routing"))
    ]
    return routes, worst_difference(evaluate(module, sample, oracle=True), want), reasons


def _captured() -> Iterator[tuple[str, Module, Outputs]]:
    from benchmarks.fixtures import vision_ops  # imports torch

    vision_ops.declare()
    from benchmarks.fixtures.capture_experts import EXPERTS, LOOPS, STATE_SPACE

    warnings.filterwarnings("ignore")  # deprecations between these packages
    logging.disable(logging.ERROR)
    jamba = [model for model in STATE_SPACE if model.name == "jamba"]
    for model in (*EXPERTS, *LOOPS, *jamba):
        given = {**model.sample({}, 0), **model.fixed}
        module = regraft.capture(model.build(), (), given)
        sample = {str(value.name): given[str(value.name)].numpy() for value in module.graph.inputs}
        yield model.name, module, sample


def _layers(settings: Settings) -> Iterator[Row]:
    """The layer of every family of `transformers` that has experts."""
    from benchmarks.fixtures import vision_ops  # imports torch

    vision_ops.declare()
    import torch

    from benchmarks.fixtures.expert_layers import LAYERS, WIDTH

    warnings.filterwarnings("ignore")  # deprecations between these packages
    logging.disable(logging.ERROR)
    raised, worst = 0, 0.0
    routings: Counter[str] = Counter()
    wanted = [layer for layer in LAYERS if not layer.why]
    x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    for layer in LAYERS:
        try:
            module = regraft.capture(layer.build(), (x,))
        except InputError:
            if not layer.why:
                raise
            yield shown(f"{layer.name}: stays as it is", 0, "layers", layer.why)
            continue
        sample = {str(module.graph.inputs[0].name): x.numpy()}
        routes, error, reasons = _raised(module, sample)
        worst = max(worst, error)
        routings.update(routes)
        raised += len(routes) == 1 and not layer.why
        note = "; ".join(dict.fromkeys([layer.why, *reasons]))
        if layer.why:
            yield shown(f"{layer.name}: stays as it is", len(routes), "layers", note)
        elif len(routes) != 1:
            yield held(f"{layer.name}: becomes `moe`", False, note)
        elif "given" in routes:
            yield shown(f"{layer.name}: routing that stays", 1, "layers", note)
    families = len({layer.family for layer in wanted})
    yield at_least("layers of families that become `moe`", raised, len(wanted), "layers",
                   f"{families} families; {len(LAYERS) - len(wanted)} are others")  # fmt: skip
    yield at_most("worst difference of a layer in f64", worst, _F64, "relative")
    for routing, count in routings.most_common():
        yield shown(f"layers with routing `{routing}`", count, "layers")


def _exported() -> Iterator[tuple[str, Module, Outputs]]:
    for name in _ONNX:
        yield name, regraft.load(store.load(name)), store.samples(name)


def _families(settings: Settings) -> Iterator[Row]:
    seen, raised, worst = 0, 0, 0.0
    routings: Counter[str] = Counter()
    for name, module, sample in (*_captured(), *_exported()):
        routes, error, reasons = _raised(module, sample)
        family = name.partition(" ")[0]
        wanted = 1 if ".hand" in name else _DENSE_FIRST.get(family, 2)
        seen += 1
        raised += len(routes) == wanted
        worst = max(worst, error)
        routings.update(routes)
        if len(routes) != wanted:
            yield held(f"{name}: {wanted} layers become `moe`", False, "; ".join(reasons))
        elif "given" in routes:
            yield shown(f"{name}: layers whose routing stays", len(routes), "layers",
                        "; ".join(dict.fromkeys(reasons)))  # fmt: skip
    yield at_least("families and forms whose layers of experts all become `moe`", raised, seen,
                   "models", "captured from transformers, and ONNX files")  # fmt: skip
    yield at_most("worst difference in f64", worst, _F64, "relative")
    for routing, count in routings.most_common():
        yield shown(f"layers with routing `{routing}`", count, "layers")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("families", "layers of experts of other tools, raised", _families),
    Measurement("layers", "a layer of experts of every family of transformers, raised", _layers),
)
