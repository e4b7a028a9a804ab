"""Depth and activations of trained models: layers chosen, layers tied, entries cut."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.prune_quality_weights import changed, embedded, module_of, saved
from benchmarks.quant_encoder_data import cosines, encoder
from benchmarks.suite import run
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.module import Module
from regraft.passes.activation_sparsity.cuts import Cut, threshold_of
from regraft.passes.activation_sparsity.places import gates
from regraft.passes.activation_sparsity.sparsify_activations import SparsifyActivations
from regraft.passes.depth.influence import RemovalLoss, influences, knapsack, removal_units
from regraft.passes.depth.stack import layers_of, num_parameters, removable
from regraft.passes.depth.tie_layers import TieLayers
from regraft.passes.protocol import Context
from regraft.passes.solver import additivity

Array = np.ndarray[Any, Any]

_SAMPLES = 16
_TESTED = 40
_POINT = 0.01
"""Realized sparsity is within a percentage point of what was asked for."""


def _knapsack(settings: Settings) -> Iterator[Row]:
    source = encoder()
    module = module_of(source)
    samples = source.calibration_feeds(_SAMPLES)
    layers = removable(layers_of(module))
    loss = RemovalLoss(module, OrtActivations(), samples)
    units = removal_units(loss, list(layers))
    alone = {int(unit.name): float(unit.losses[0]) for unit in units}
    sizes = {number: num_parameters(layer) for number, layer in layers.items()}
    joint = additivity(loss, units, count=12)
    yield shown("layers: R² of joint losses against sums", joint.r_squared, "")
    yield shown("layers: rank correlation of joint losses with sums", joint.rank_correlation, "")
    turned = influences(module, layers, "attention_mask", OrtActivations(), samples)
    for fraction in (1 / 6, 1 / 3, 1 / 2):
        found = knapsack(units, layers, fraction, 0)
        chosen = [int(u.name) for u, k in zip(units, found.choice, strict=True) if k == 0]
        need = fraction * sum(sizes.values()) * (1 - 1e-9)
        best = min(
            sum(alone[n] for n in some)
            for count in range(len(layers) + 1)
            for some in itertools.combinations(layers, count)
            if sum(sizes[n] for n in some) >= need
        )
        yield at_most(
            f"{fraction:.0%} of the layers: knapsack above brute force", found.loss - best, 0.0, ""
        )
        least = sorted(turned, key=lambda n: turned[n])[: len(chosen)]
        for name, some in (("knapsack", chosen), ("influence", least)):
            off = loss.loss({str(n): 0.0 for n in some})
            yield shown(f"{fraction:.0%} of the layers, by {name}: error of embeddings", off**0.5,
                        "", f"layers {sorted(some)}")  # fmt: skip


def _tied(settings: Settings) -> Iterator[Row]:
    source = encoder()
    reference = source.reference[:_TESTED]
    errors = []
    for rank in (16, 64, 384):
        module, result = changed(source, TieLayers(block=3, rank=rank))
        errors.append(sum(each.error**2 for each in result.layers) ** 0.5)
        wide = [(384, 384)] * 4 + [(384, 1536)] * 2
        shared = 3 * sum(a * b for a, b in wide)
        added = 6 * sum(rank * (a + b) for a, b in wide)
        yield held(
            f"rank {rank}: parameters as the formula says",
            result.stats["numbers"] == shared + added, f"{result.stats['numbers']:,.0f}",
        )  # fmt: skip
        found = cosines(reference, embedded(saved(module, f"tied-{rank}"), source, _TESTED))
        if rank == 384:
            yield at_least(
                "full rank: worst cosine of embeddings", float(found.min()), 1 - 1e-5, ""
            )
        else:
            yield shown(f"rank {rank}: cosine of embeddings, mean", float(found.mean()), "")
    yield held("errors fall with the rank", errors[0] > errors[1] > errors[2])


def _activations(settings: Settings) -> Iterator[Row]:
    source = encoder()
    reference = source.reference[:_TESTED]
    means: dict[str, float] = {}
    for method in ("magnitude", "wina"):
        item = SparsifyActivations(method=method, cut="threshold", rate=0.4)
        module, result = changed(source, item)
        gone = _realized(module, source.calibration_feeds(256)[224:])
        yield at_most(f"{method}: realized sparsity, distance from 0.4 on other sentences",
                      abs(gone - 0.4), _POINT, "", f"{result.stats['places']} places")  # fmt: skip
        found = cosines(reference, embedded(saved(module, f"cut-{method}"), source, _TESTED))
        means[method] = float(found.mean())
        yield shown(f"{method}, 40 % cut: cosine of embeddings, mean", means[method], "")
    yield shown("WINA above magnitude, cosine", means["wina"] - means["magnitude"], "")


def _realized(module: Module, feeds: Any) -> float:
    cuts = [node.output for node in module.graph if node.op.name == "where" and _is_cut(node)]
    zeros = total = 0
    for item in OrtActivations().activations(module, cuts, feeds):
        zeros += sum(int((array == 0).sum()) for array in item.values())
        total += sum(array.size for array in item.values())
    return zeros / total


def _is_cut(node: Any) -> bool:
    made = node.inputs[0].producer
    return made is not None and made.op.name in ("greater", "greater_or_equal")


def _gates(settings: Settings) -> Iterator[Row]:
    from benchmarks.small_models import get  # needs PyTorch

    model = get("char-lm")
    batches = [dict(batch) for batch in itertools.islice(model.held_out(), 6)]
    reference = _prefill(model)
    names = [value.name for value in reference.graph.inputs]
    feeds = [{str(name): batch[str(name)][:4] for name in names} for batch in batches]
    module = reference.clone()
    ctx = Context(samples=feeds[:3], activations=OrtActivations())
    result = SparsifyActivations(method="chess", rate=0.5).run(module, ctx)
    gone = _realized(module, feeds[3:])
    yield at_most("CHESS, char-lm: realized sparsity, distance from 0.5 on other texts",
                  abs(gone - 0.5), _POINT, "", f"{result.stats['places']} blocks")  # fmt: skip
    errors = {name: _gate_error(reference, feeds, name) for name in ("channel", "single")}
    yield shown("CHESS: error of feed-forward outputs", errors["channel"], "")
    yield shown("one threshold: error of feed-forward outputs", errors["single"], "")
    yield held("CHESS errs less than one threshold", errors["channel"] < errors["single"])


def _prefill(model: Any) -> Module:
    import regraft

    module: Module = model.module()
    regraft.apply(module, "canonicalize,fuse", check="off")
    return module


def _gate_error(module: Module, feeds: Sequence[Mapping[str, Array]], how: str) -> float:
    """Returns the error of all gated blocks, cut on the first feeds, on the others."""
    places, _ = gates(module, (), ())
    values = [v for p in places for v in (p.value, p.partner) if v is not None]
    seen = list(OrtActivations().activations(module, values, feeds))
    off = scale = 0.0
    for place in places:
        assert place.partner is not None, "a gate is multiplied"
        given = [item[place.value] for item in seen[:3]]
        weights = np.ones(given[0].shape[-1], np.float32)
        if how == "channel":
            rows = np.concatenate([np.abs(item[place.partner]) for item in seen[:3]])
            weights = rows.reshape(-1, weights.size).mean(0)
        cut = Cut(weights, threshold=threshold_of([np.abs(x) * weights for x in given], 0.5))
        matrix = place.readers[0].stack()[0]
        for item in seen[3:]:
            gate, up = item[place.value], item[place.partner]
            off += float(np.square(((cut.apply(gate) - gate) * up) @ matrix).sum())
            scale += float(np.square((gate * up) @ matrix).sum())
    return float((off / scale) ** 0.5)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("knapsack", "layers of the real encoder, by loss and by influence", _knapsack),
    Measurement("tied", "layers of the real encoder that share a block", _tied),
    Measurement("activations", "cut inputs of the real encoder", _activations),
    Measurement("gates", "cut gates of the small language model", _gates),
)

if __name__ == "__main__":
    sys.exit(run("prune_quality", __doc__ or "", MEASUREMENTS))
