"""What layers of experts do on samples: loads, entropies, likeness of experts, active cost.

Source: Lo et al., A Closer Look into Mixture-of-Experts in Large Language Models, 2024 (likeness of
experts by weights and by results, norms of results beside the router's choice).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.passes.experts.layers import MoeLayer, moe_layers_of, outputs_of
from regraft.passes.protocol import ActivationSource, Samples, Skip

Array = np.ndarray[Any, Any]

_COMPARED = 256
"""Tokens on which results of all experts are compared."""
_PARTS = ("up", "gate", "down")


@dataclass(frozen=True, slots=True)
class ExpertFigures:
    """Of one layer.

    Args:
        name: Of its first weight.
        experts: How many there are.
        widths: Hidden channels of each.
        tokens: How many were seen.
        load: Share of the tokens that each expert computes.
        worst_load: The largest load over the mean.
        load_entropy: Entropy of the loads over that of even ones.
        router_entropy: Mean entropy of the scores' softmax over that of even ones.
        chosen: Experts of a token on mean.
        unused: Experts that compute no token.
        weight_cosine: Largest cosine of two experts' weights.
        output_cosine: Largest mean cosine of two experts' results.
        norms: Mean norm of each expert's results.
        norm_choice: Correlation of the norm of an expert's result with its score.
        flops: Mean of a token.
        whole_flops: Of a token that all experts compute.
    """

    name: str
    experts: int
    widths: tuple[int, ...]
    tokens: int
    load: tuple[float, ...]
    worst_load: float
    load_entropy: float
    router_entropy: float
    chosen: float
    unused: int
    weight_cosine: float
    output_cosine: float
    norms: tuple[float, ...]
    norm_choice: float
    flops: float
    whole_flops: float


@dataclass(slots=True)
class _Seen:
    """What samples showed of one layer."""

    counts: Array
    tokens: int = 0
    entropy: float = 0.0
    rows: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)


def expert_figures(
    module: Module, samples: Samples, source: ActivationSource
) -> tuple[list[ExpertFigures], list[Skip]]:
    """Returns figures of the layers of the main graph, and what was left out.

    Args:
        module: The module; its layers are operators `moe`.
        samples: What it runs on.
        source: Gives values inside of it.
    """
    found, skipped = moe_layers_of(module)
    layers = [layer for layer in found if layer.graph is module.graph]
    skipped += [
        Skip(layer.name, "within a body, where nothing is measured")
        for layer in found
        if layer.graph is not module.graph
    ]
    if not layers:
        return [], skipped
    seen = [_Seen(np.zeros(layer.num_experts, np.int64)) for layer in layers]
    values: list[Value] = [value for layer in layers for value in (layer.x, layer.scores)]
    quota = max(1, _COMPARED // max(1, len(samples)))
    for content in source.activations(module, list(dict.fromkeys(values)), samples):
        for layer, own in zip(layers, seen, strict=True):
            _add(own, layer, content[layer.x], content[layer.scores], quota)
    return [_figures(layer, own) for layer, own in zip(layers, seen, strict=True)], skipped


def _add(seen: _Seen, layer: MoeLayer, x: Array, scores: Array, quota: int) -> None:
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    flat = scores.reshape(-1, scores.shape[-1]).astype(np.float32)
    bias, gain = (layer.weights.get(name) for name in ("score_bias", "weight_gain"))
    taken, _ = moe.route(layer.node.attrs, flat, bias, gain)
    seen.counts += taken.sum(0)
    seen.tokens += len(rows)
    shifted = flat.astype(np.float64) - flat.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    seen.entropy += float(-(p * np.log(np.clip(p, 1e-300, None))).sum())
    stride = -(-len(rows) // quota)
    seen.rows.append(rows[::stride])
    seen.scores.append(flat[::stride])


def _figures(layer: MoeLayer, seen: _Seen) -> ExpertFigures:
    num, counts = layer.num_experts, seen.counts
    even = math.log(num) if num > 1 else 1.0
    shares = counts / max(1, counts.sum())
    positive = shares[shares > 0]
    rows = np.concatenate(seen.rows)
    results = np.stack([outputs_of(layer, expert, rows) for expert in range(num)])
    norms = np.linalg.norm(results.astype(np.float64), axis=-1)  # [E, N]
    widths = tuple(layer.node.attrs["widths"]) or (int(layer.weights["up"].shape[1]),) * num
    per_channel = 2 * (
        rows.shape[1] * (2 if "gate" in layer.weights else 1) + layer.weights["down"].shape[1]
    )
    load = counts / max(1, seen.tokens)
    return ExpertFigures(
        name=layer.name,
        experts=num,
        widths=widths,
        tokens=seen.tokens,
        load=tuple(float(each) for each in load),
        worst_load=float(counts.max() / max(counts.mean(), 1e-30)),
        load_entropy=float(-(positive * np.log(positive)).sum()) / even,
        router_entropy=seen.entropy / max(1, seen.tokens) / even,
        chosen=float(load.sum()),
        unused=int((counts == 0).sum()),
        weight_cosine=_largest(_weight_rows(layer)),
        output_cosine=_largest_mean(results),
        norms=tuple(float(each) for each in norms.mean(1)),
        norm_choice=_correlation(norms.T, np.concatenate(seen.scores)),
        flops=float(per_channel * (load * np.array(widths)).sum()),
        whole_flops=float(per_channel * sum(widths)),
    )


def _weight_rows(layer: MoeLayer) -> Array:
    parts = [layer.weights[name] for name in _PARTS if name in layer.weights]
    rows: Array = np.concatenate(
        [part.reshape(layer.num_experts, -1).astype(np.float64) for part in parts], axis=1
    )
    return rows


def _largest(rows: Array) -> float:
    """Returns the largest cosine of two rows."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length == 0, 1, length)
    return _off_diagonal(unit @ unit.T)


def _largest_mean(results: Array) -> float:
    """Returns the largest mean cosine of two experts' results, of f[E, N, O]."""
    wide = results.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit = wide / np.where(length == 0, 1, length)
    return _off_diagonal(np.einsum("ano,bno->ab", unit, unit) / wide.shape[1])


def _off_diagonal(square: Array) -> float:
    if len(square) < 2:
        return 0.0
    return float(square[~np.eye(len(square), dtype=bool)].max())


def _correlation(norms: Array, scores: Array) -> float:
    """Returns the correlation over experts, mean of the tokens that have one."""
    a = norms - norms.mean(1, keepdims=True)
    b = scores.astype(np.float64) - scores.mean(1, keepdims=True, dtype=np.float64)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.where(scale == 0, 1, scale)).mean())


def active_fraction(layers: Sequence[ExpertFigures]) -> float:
    """Returns the FLOPs of chosen experts over those of all."""
    whole = sum(layer.whole_flops for layer in layers)
    return sum(layer.flops for layer in layers) / whole if whole else 1.0
