"""Weights that token mixers give keys, as arrays: softmax, linear, and hybrid attention alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.ops.attention import attention, visible_keys
from regraft.ir.ops.attention_weights import masked_softmax
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.ops.hybrid_attention_body import SHARE_FLOOR

Array = np.ndarray[Any, Any]
Operands = Mapping[str, Array]
"""Operands of a node by name, those that are there."""


def weights_of_mixer(node: Node, given: Operands) -> Array:
    """Returns what every query weighs every key with, f[B, H, S, T]; rows sum to 1 or to 0.

    Linear attention without a normalizer is brought to rows whose absolute values sum to 1.
    """
    if node.op is attention:
        return _softmax(node, given)
    if node.op is hybrid_attention:
        return _hybrid(node, given)
    return _linear(node, given)


def scores_of_mixer(node: Node, given: Operands) -> Array:
    """Returns the products of queries and keys as they come, f[B, H, S, T]."""
    return np.asarray(given["q"] @ _per_query(node, given["k"]).swapaxes(-1, -2))


def _per_query(node: Node, x: Array) -> Array:
    return np.repeat(x, node.attrs["kv_groups"], axis=1)


def _softmax(node: Node, given: Operands) -> Array:
    attrs = node.attrs
    scores = scores_of_mixer(node, given) * attrs["scale"]
    if attrs["softcap"] > 0:
        scores = attrs["softcap"] * np.tanh(scores / attrs["softcap"])
    mask = given.get("mask")
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    offset = given.get("causal_offset", attrs["causal_offset"])
    visible = visible_keys(attrs, scores.shape[2], scores.shape[3], given.get("kv_lengths"), offset)
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    return masked_softmax(scores, given.get("sinks"))[..., : scores.shape[3]]


def _linear(node: Node, given: Operands) -> Array:
    attrs = node.attrs
    apply = FEATURE_MAPS[attrs["feature_map"]].apply
    fq, fk = apply(given["q"]), apply(_per_query(node, given["k"]))
    made = _decayed_products(node, fq, fk, given) * attrs["scale"]
    T = made.shape[3]
    if attrs["normalizer"] == "mean":
        return np.asarray((made - made.mean(-1, keepdims=True) + 1) / T)
    return _normalized(made, attrs["epsilon"])


def _decayed_products(node: Node, fq: Array, fk: Array, given: Operands) -> Array:
    """Returns products of features, f[B, H, S, T], times the decay between a key and a query."""
    decay = given.get("decay")
    causal = np.tri(fq.shape[2], fk.shape[2], dtype=bool)
    if decay is None:
        made = fq @ fk.swapaxes(-1, -2)
        return np.where(causal, made, 0) if node.attrs["causal"] else np.asarray(made)
    sums = np.cumsum(np.broadcast_to(decay, (*given["k"].shape[:3], decay.shape[3])), axis=2)
    sums = _per_query(node, sums)
    if sums.shape[3] == 1:
        return np.where(causal, fq @ fk.swapaxes(-1, -2) * _factors(sums[..., 0]), 0)
    total = np.zeros((*fq.shape[:3], fk.shape[2]))
    for channel in range(fq.shape[3]):  # a decay of its own each
        pairs = fq[..., :, None, channel] * fk[..., None, :, channel]
        total += pairs * _factors(sums[..., channel])
    return np.where(causal, total, 0)


def _factors(sums: Array) -> Array:
    """Returns exp(s_i - s_j), at most 1, of sums of logarithms, f[B, H, T]."""
    return np.asarray(np.exp(np.minimum(sums[..., :, None] - sums[..., None, :], 0)))


def _hybrid(node: Node, given: Operands) -> Array:
    attrs = node.attrs
    scores = scores_of_mixer(node, given) * attrs["scale"]
    S, T = scores.shape[2:]
    apart = np.arange(S)[:, None] - np.arange(T)
    shown = np.ones((1, 1, 1, T), bool)
    if "visible" in given:
        shown = given["visible"][:, None, None]
    near = (apart >= 0) & (apart < attrs["window"]) & shown
    scores = np.where(near, scores, -np.inf)
    top = np.maximum(scores.max(-1, keepdims=True), -1e30)
    rest: Any = 1.0
    if attrs["merge"] == "lse":
        top = np.maximum(top, 0)
        rest = np.exp(-top)
    gain = given["gain"].reshape(1, -1, 1, 1) if "gain" in given else 1.0
    far = given["fq"] @ _per_query(node, given["fk"]).swapaxes(-1, -2) * rest
    window = np.exp(scores - top)
    if attrs["merge"] == "share":
        mass = np.where(near, far, 0).sum(-1, keepdims=True) + SHARE_FLOOR
        window = window * (mass / np.maximum(window.sum(-1, keepdims=True), 1e-30))
    window = gain * window
    linear = np.where((apart >= attrs["window"]) & shown, far, 0)
    parts = {"both": window + linear, "window": window, "linear": linear, "none": 0 * linear}
    return _normalized(parts[attrs["branches"]], attrs["epsilon"])


def _normalized(made: Array, epsilon: float) -> Array:
    return np.asarray(made / (np.abs(made).sum(-1, keepdims=True) + max(epsilon, 1e-12)))
