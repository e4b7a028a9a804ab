"""What `tune` measures: small canonical graphs around each site, at several sizes.

A form is never measured alone: its neighbours decide what the runtime fuses and copies, so that
every case is a block as models have it, with symbolic sizes, under default session options.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.backends.onnx.legalize.experts import TOKENS
from regraft.backends.onnx.legalize.recurrence import LENGTHS as RECURRENCE_LENGTHS
from regraft.backends.onnx.legalize.recurrence import columns
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    activation,
    arithmetic,
    attention,
    linalg,
    linear_attention,
    moe,
    norm,
    reshaping,
    rotary,
)
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role

Array = np.ndarray[Any, Any]

_LENGTHS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)
_LONGEST = _LENGTHS[-1]
_GROUPS = 4
_BLOCKS = 2
"""Blocks per measured graph: a norm or an activation is a small part of one."""


@dataclass(frozen=True, slots=True)
class Case:
    """One graph at one set of sizes.

    Args:
        site: The site whose forms are compared.
        kind: Facts as `Features.kind`.
        sizes: Sizes as `Features.sizes`, one value each.
        build: Makes the canonical module.
        inputs: Makes the inputs.
        quick: Whether it belongs to the short set.
    """

    site: str
    kind: Mapping[str, str]
    sizes: Mapping[str, int]
    build: Callable[[], Module]
    inputs: Callable[[], dict[str, Array]]
    quick: bool

    def __str__(self) -> str:
        words = [word for name, word in self.kind.items() if word not in ("no", "yes")]
        words += [name for name, word in self.kind.items() if word == "yes"]
        sizes = [f"{name}={size}" for name, size in self.sizes.items()]
        return " ".join([self.site, *words, *sizes])


class _Block:
    """A module under construction around one input f32[B, S, E]."""

    def __init__(self, width: int) -> None:
        self.graph = Graph()
        self.width = width
        self.rng = np.random.default_rng(0)
        scope = self.graph.scope
        self.B, self.S = Dim.of(scope.symbol("B", lo=1)), Dim.of(scope.symbol("S", lo=1))
        self.x = self.graph.add_input("x", TensorType(DType.F32, (self.B, self.S, width)))
        self.b = Builder(self.graph)

    def param(self, *shape: int, scale: float | None = None) -> Value:
        """Returns a random parameter."""
        array = self.rng.standard_normal(shape, np.float32) * np.float32(scale or shape[0] ** -0.5)
        return self.b.weight("w", ArrayWeight(array), Role.PARAM)

    def linear(self, x: Value, size_in: int, size_out: int) -> Value:
        """Returns x @ w + bias."""
        out = self.b.op(linalg.matmul, x, self.param(size_in, size_out))
        return self.b.op(arithmetic.add, out, self.param(size_out, scale=0.02))

    def norm(self, x: Value, kind: str = "layer_norm") -> Value:
        """Returns a layer or RMS norm over the width."""
        gain = self.param(self.width, scale=1.0)
        if kind == "rms_norm":
            return self.b.op(norm.rms_norm, x, gain, epsilon=1e-6)
        return self.b.op(norm.layer_norm, x, gain, self.param(self.width, scale=0.02))

    def add(self, x: Value, y: Value) -> Value:
        """Returns x + y."""
        return self.b.op(arithmetic.add, x, y)

    def module(self, out: Value) -> Module:
        """Finishes the module."""
        self.graph.add_output("y", out)
        return Module(self.graph, "case")

    def inputs(self, length: int) -> dict[str, Array]:
        """Returns one sample of batch 1."""
        rng = np.random.default_rng(1)
        return {"x": rng.standard_normal((1, length, self.width), np.float32)}


def _attention(
    length: int,
    size: int,
    *,
    quick: bool,
    causal: bool = False,
    masked: bool = False,
    grouped: bool = False,
    rotated: bool = False,
) -> Case:
    heads = max(4, 512 // size) if size >= 64 else 8
    kv_heads = heads // _GROUPS if grouped else heads
    width = heads * size

    def build() -> Module:
        block = _Block(width)
        b, B, S = block.b, block.B, block.S
        mask = None
        if masked:
            mask = block.graph.add_input("mask", TensorType(DType.F32, (B, 1, 1, S)))
        parts, angles = [], []
        if rotated:
            angles = [b.weight("t", ArrayWeight(t)) for t in _angles(size)]
            angles.append(block.graph.add_input("positions", TensorType(DType.I64, (B, S))))
        for count in (heads, kv_heads, kv_heads):
            flat = block.linear(block.x, width, count * size)
            split = b.op(reshaping.reshape, flat, shape=(B, S, count, size))
            parts.append(b.op(reshaping.transpose, split, perm=(0, 2, 1, 3)))
        if rotated:
            parts[:2] = [b.op(rotary.rotary_embedding, x, *angles) for x in parts[:2]]
        out = b.op(
            attention.attention, *parts, mask, scale=size**-0.5, kv_groups=heads // kv_heads,
            causal_offset=0 if causal else None,
        )  # fmt: skip
        out = b.op(reshaping.transpose, out, perm=(0, 2, 1, 3))
        out = block.linear(b.op(reshaping.reshape, out, shape=(B, S, width)), width, width)
        return block.module(block.add(block.x, out))

    def inputs() -> dict[str, Array]:
        made = _Block(width).inputs(length)
        if masked:
            hidden = np.arange(length) >= max(1, length * 3 // 4)
            made["mask"] = np.where(hidden, np.float32(-1e9), np.float32(0))[None, None, None]
        if rotated:
            made["positions"] = np.arange(length)[None]
        return made

    kind = {"causal": causal, "masked": masked, "grouped": grouped, "rotary": rotated}
    words = {name: "yes" if fact else "no" for name, fact in kind.items()}
    return Case("attention", words, {"S": length, "D": size}, build, inputs, quick)


def _recurrence(length: int, size: int, value_size: int, *, quick: bool) -> Case:
    heads = max(4, 512 // size)
    width = heads * size

    def build() -> Module:
        block = _Block(width)
        b, B, S = block.b, block.B, block.S
        parts = []
        for channels in (size, size, value_size):
            flat = block.linear(block.x, width, heads * channels)
            split = b.op(reshaping.reshape, flat, shape=(B, S, heads, channels))
            parts.append(b.op(reshaping.transpose, split, perm=(0, 2, 1, 3)))
        out = b.op(linear_attention.linear_attention, *parts, rule="linear", scale=size**-0.5)
        out = b.op(reshaping.transpose, out, perm=(0, 2, 1, 3))
        out = b.op(reshaping.reshape, out, shape=(B, S, heads * value_size))
        return block.module(block.add(block.x, block.linear(out, heads * value_size, width)))

    return Case(
        "recurrence", {"columns": columns(value_size)},
        {"S": length, "D": size, "E": value_size}, build,
        lambda: _Block(width).inputs(length), quick,
    )  # fmt: skip


def _recurrence_cases() -> Iterator[Case]:
    for size, value_size in (
        (32, 32), (64, 32), (64, 64), (128, 64), (128, 128), (8, 8), (16, 16), (32, 16), (64, 48),
        (80, 80), (33, 33), (64, 65),
    ):  # fmt: skip
        for length in RECURRENCE_LENGTHS:
            yield _recurrence(length, size, value_size, quick=(size, value_size) == (64, 64))


def _experts(
    tokens: int, experts: int, top_k: int, width: int, hidden: int, *, gated: bool, quick: bool
) -> Case:
    def build() -> Module:
        block = _Block(width)
        b, x = block.b, block.norm(block.x, "rms_norm")
        scores = b.op(linalg.matmul, x, block.param(width, experts))
        up, gate = (block.param(experts, hidden, width, scale=width**-0.5) for _ in range(2))
        out = b.op(
            moe.moe, x, scores, up, block.param(experts, width, hidden, scale=hidden**-0.5),
            gate if gated else None, top_k=top_k, renormalize=True, activation="silu",
        )  # fmt: skip
        return block.module(block.add(block.x, out))

    return Case(
        "moe", {"gated": "yes" if gated else "no"},
        {"T": tokens, "E": experts, "k": top_k, "D": width, "F": hidden}, build,
        lambda: _Block(width).inputs(tokens), quick,
    )  # fmt: skip


def _experts_cases() -> Iterator[Case]:
    for gated in (False, True):
        for experts, top_k, width, hidden in (
            (8, 1, 256, 1024), (8, 2, 256, 1024), (32, 4, 256, 256), (64, 8, 256, 128),
            (8, 2, 768, 2048),
        ):  # fmt: skip
            for tokens in TOKENS:
                quick = gated and (experts, top_k, width) == (8, 2, 256)
                yield _experts(tokens, experts, top_k, width, hidden, gated=gated, quick=quick)


def _residual_norm(rows: int, width: int, kind: str, *, quick: bool) -> Case:
    def build() -> Module:
        block = _Block(width)
        x, y = block.x, block.linear(block.x, width, width)
        for _ in range(_BLOCKS):
            x = block.add(x, y)
            y = block.linear(block.norm(x, kind), width, width)
        return block.module(block.add(x, y))

    return Case(
        "residual_norm", {"norm": kind}, {"rows": rows, "width": width}, build,
        lambda: _Block(width).inputs(rows), quick,
    )  # fmt: skip


def _gelu(rows: int, width: int, *, tanh: bool, quick: bool) -> Case:
    def build() -> Module:
        block = _Block(width)
        x = block.x
        for _ in range(_BLOCKS):
            hidden = block.linear(block.norm(x), width, 4 * width)
            hidden = block.b.op(activation.gelu, hidden, tanh=tanh)
            x = block.add(x, block.linear(hidden, 4 * width, width))
        return block.module(x)

    return Case(
        "gelu", {"tanh": "yes" if tanh else "no"}, {"rows": rows, "width": 4 * width}, build,
        lambda: _Block(width).inputs(rows), quick,
    )  # fmt: skip


def _angles(size: int) -> tuple[Array, Array]:
    """Returns cos and sin tables f32[P, size / 2]."""
    steps = np.arange(_LONGEST)[:, None] * 10000 ** (-np.arange(0, size, 2) / size)
    return np.cos(steps).astype(np.float32), np.sin(steps).astype(np.float32)


def _attention_cases() -> Iterator[Case]:
    for causal, masked, grouped in itertools.product((False, True), repeat=3):
        for size in (32, 64, 128):
            for length in _LENGTHS:
                if size != 64 and (grouped or length not in (16, 128, 512)):
                    continue  # the kernels scale alike
                if (length > 512 and masked) or (length == _LONGEST and grouped):
                    continue  # seconds each
                quick = size == 64 and length <= 512 and not grouped
                yield _attention(
                    length, size, quick=quick, causal=causal, masked=masked, grouped=grouped
                )
    for causal, masked, grouped in itertools.product((False, True), repeat=3):
        for length in _LENGTHS:
            if length <= 512 if masked else length < _LONGEST and (causal or not grouped):
                quick = length <= 512 and causal and not grouped
                yield _attention(
                    length, 64, quick=quick, causal=causal, masked=masked, grouped=grouped,
                    rotated=True,
                )  # fmt: skip


def cases() -> Iterator[Case]:
    """Yields every case; those of the quick set carry its mark."""
    yield from _attention_cases()
    yield from _recurrence_cases()
    yield from _experts_cases()
    for width in (128, 384, 768):
        for rows in (16, 128, 512) if width == 384 else (128,):
            quick = width == 384
            for kind in ("layer_norm", "rms_norm"):
                yield _residual_norm(rows, width, kind, quick=quick)
            for tanh in (False, True):
                yield _gelu(rows, width, tanh=tanh, quick=quick)
