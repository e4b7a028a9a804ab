"""Random modules over the rule table: streams of tokens and images through coupled operators.

Inputs are `f32[B, S, 6]` (tokens) and `f32[B, 5, 6, 6]` (images). Everything ends in a product
with a weight, so that few axes show at the outputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role

WIDTHS = (2, 3, 4, 6, 8, 12)
UNARY = ("relu", "sigmoid", "tanh", "gelu", "neg", "abs", "softplus", "swish")
BINARY = ("add", "sub", "mul", "max", "min")


class Maker:
    """One random module under construction; `tokens` are [B, S, C], `images` [B, C, 6, 6]."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.graph = Graph()
        self.b = Builder(self.graph)
        self.B = Dim.of(self.graph.scope.symbol("B"))
        self.S = Dim.of(self.graph.scope.symbol("S"))
        self.tokens = [self.graph.add_input("tokens", TensorType(DType.F32, (self.B, self.S, 6)))]
        self.images = [self.graph.add_input("images", TensorType(DType.F32, (self.B, 5, 6, 6)))]
        self.shared: dict[tuple[int, ...], Value] = {}

    # -- parts --------------------------------------------------------------------------------

    def weight(self, *shape: int) -> Value:
        """A weight; now and then the one of that shape that stands elsewhere too."""
        if shape in self.shared and self.rng.random() < 0.2:
            return self.shared[shape]
        scale = 1 / np.sqrt(shape[-2] if len(shape) > 1 else 1)
        array = (self.numbers.normal(0, scale, shape)).astype(np.float32)
        value = self.b.weight("w", ArrayWeight(array), Role.PARAM)
        self.shared[shape] = value
        return value

    def op(self, name: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.b.op(OPS[name], *inputs, **attrs)

    def token(self) -> Value:
        return self.rng.choice(self.tokens[-4:])

    def image(self) -> Value:
        return self.rng.choice(self.images[-4:])

    def width(self) -> int:
        return self.rng.choice(WIDTHS)

    @staticmethod
    def channels(value: Value, axis: int = -1) -> int:
        size = value.shape[axis] if value.shape else 0
        assert isinstance(size, int)
        return size

    def linear(self, x: Value, out: int) -> Value:
        """A product in one of its spellings."""
        width = self.channels(x)
        kind = self.rng.randrange(4)
        if kind == 0:
            y = self.op("matmul", x, self.op("transpose", self.weight(out, width), perm=(1, 0)))
        elif kind == 1:
            y = self.op("einsum", x, self.weight(width, out), equation="bsi,io->bso")
        elif kind == 2:
            flat = self.op("reshape", x, shape=(self.B * self.S, width))
            y = self.op("gemm", flat, self.weight(out, width), self.weight(out), trans_b=True)
            y = self.op("reshape", y, shape=(self.B, self.S, out))
        else:
            y = self.op("matmul", x, self.weight(width, out))
        return self.op("add", y, self.weight(out)) if self.rng.random() < 0.5 else y

    # -- tokens -------------------------------------------------------------------------------

    def project(self) -> Value:
        return self.linear(self.token(), self.width())

    def unary(self) -> Value:
        return self.op(self.rng.choice(UNARY), self.token())

    def binary(self) -> Value:
        a = self.token()
        same = [x for x in self.tokens if x.shape == a.shape]
        return self.op(self.rng.choice(BINARY), a, self.rng.choice(same))

    def residual(self) -> Value:
        x = self.token()
        inner = self.op("gelu", self.linear(x, self.width()))
        return self.op("add", x, self.linear(inner, self.channels(x)))

    def scale(self) -> Value:
        x = self.token()
        c = self.channels(x)
        return self.op("mul", x, self.weight(*self.rng.choice([(c,), (1, c), (1,)])))

    def norm(self) -> Value:
        x = self.token()
        c = self.channels(x)
        if self.rng.random() < 0.5:
            return self.op("layer_norm", x, self.weight(c), self.weight(c))
        return self.op("rms_norm", x, self.weight(c))

    def gated(self) -> Value:
        half = self.width()
        both = self.linear(self.token(), 2 * half)
        if self.rng.random() < 0.5:
            a, b = self.b.multi(OPS["split"], both, num_outputs=2, axis=-1)
        else:
            a = self.op("slice", both, starts=(0,), ends=(half,), axes=(2,))
            b = self.op("slice", both, starts=(half,), ends=(1 << 40,), axes=(2,))
        return self.op("mul", self.op("swish", a), b)

    def cut(self) -> Value:
        x = self.token()
        c = self.channels(x)
        first = self.rng.randrange(c)
        last = self.rng.randrange(first, c) + 1
        if self.rng.random() < 0.3 and c % 2 == 0 and c > 2:
            return self.op("slice", x, starts=(first % 2,), ends=(c,), axes=(-1,), steps=(2,))
        return self.op("slice", x, starts=(first - c,), ends=(last,), axes=(-1,), steps=(1,))

    def parts(self) -> Value:
        x = self.linear(self.token(), 12)
        sizes = self.rng.choice([(4, 4, 4), (6, 2, 4), (3, 9)])
        made = self.b.multi(OPS["split"], x, num_outputs=len(sizes), axis=2, sizes=sizes)
        self.tokens += made
        return made[0]

    def join(self) -> Value:
        return self.op("concat", self.token(), self.token(), axis=self.rng.choice((2, -1)))

    def shuffle(self) -> Value:
        x = self.token()
        c = self.channels(x)
        blocks = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        split = self.op("reshape", x, shape=(self.B, self.S, blocks, c // blocks))
        turned = self.op("transpose", split, perm=(0, 1, 3, 2))
        return self.op("reshape", turned, shape=(self.B, self.S, c))

    def reduce(self) -> Value:
        x = self.token()
        c = self.channels(x)
        blocks = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        split = self.op("reshape", x, shape=(self.B, self.S, blocks, c // blocks))
        kind = self.rng.choice(("reduce_sum", "reduce_mean", "reduce_max", "softmax"))
        axis = self.rng.choice((2, 3))
        if kind == "softmax":
            split = self.op("softmax", split, axis=axis)
            return self.op("reshape", split, shape=(self.B, self.S, c))
        return self.op(kind, split, axes=(axis,), keepdims=False)

    def repeat(self) -> Value:
        x = self.token()
        c = self.channels(x)
        times = self.rng.choice((2, 3))
        if self.rng.random() < 0.3:
            return self.op("tile", x, repeats=(1, 1, times))
        wide = self.op("unsqueeze", x, axes=(self.rng.choice((2, 3)),))
        shape = [times if size == 1 else size for size in wide.shape or ()]
        wide = self.op("expand", wide, shape=tuple(shape))
        return self.op("reshape", wide, shape=(self.B, self.S, times * c))

    def heads(self) -> Value:
        """Attention of a few query heads per key head, recognized or spelled out."""
        x = self.token()
        kv, groups, size, out = (self.rng.choice((1, 2, 3)) for _ in range(4))
        size, out = 2 * size, self.rng.choice((2, 3, 4))
        q = self._heads(self.linear(x, kv * groups * size), kv * groups)
        k = self._heads(self.linear(x, kv * size), kv)
        v = self._heads(self.linear(x, kv * out), kv)
        if self.rng.random() < 0.5:
            q, k = self._norm_heads(q), self._norm_heads(k)
        if self.rng.random() < 0.3:
            q, k = self._turn(q, k, size)
        if self.rng.random() < 0.5:
            y = self.op("attention", q, k, v, scale=0.5, kv_groups=groups)
        else:
            k, v = (self._spread(t, kv, groups) for t in (k, v))
            scores = self.op("matmul", q, self.op("transpose", k, perm=(0, 1, 3, 2)))
            y = self.op("matmul", self.op("softmax", scores, axis=-1), v)
        y = self.op("transpose", y, perm=(0, 2, 1, 3))
        y = self.op("reshape", y, shape=(self.B, self.S, kv * groups * out))
        return self.linear(y, self.channels(x))

    def _heads(self, x: Value, heads: int) -> Value:
        split = self.op("reshape", x, shape=(self.B, self.S, heads, self.channels(x) // heads))
        return self.op("transpose", split, perm=(0, 2, 1, 3))

    def _norm_heads(self, x: Value) -> Value:
        return self.op("rms_norm", x, self.weight(self.channels(x)))

    def _turn(self, q: Value, k: Value, size: int) -> tuple[Value, Value]:
        angles = self.weight(1, size // 2)
        wide = self.op("expand", angles, shape=(self.S, size // 2))
        cos, sin = self.op("cos", wide), self.op("sin", wide)
        interleaved = self.rng.random() < 0.5
        q, k = (
            self.op("rotary_embedding", t, cos, sin, None, interleaved=interleaved) for t in (q, k)
        )
        return q, k

    def _spread(self, x: Value, kv: int, groups: int) -> Value:
        size = self.channels(x)
        wide = self.op("unsqueeze", x, axes=(2,))
        wide = self.op("expand", wide, shape=(self.B, kv, groups, self.S, size))
        return self.op("reshape", wide, shape=(self.B, kv * groups, self.S, size))

    def recurrent(self) -> Value:
        x = self.op("transpose", self.token(), perm=(1, 0, 2))
        hidden, width = self.width(), self.channels(x)
        kind, gates, acts = self.rng.choice(
            [("lstm", 4, ("Sigmoid", "Tanh", "Tanh")), ("gru", 3, ("Sigmoid", "Tanh"))]
        )
        y = self.op(
            kind, x, self.weight(1, gates * hidden, width), self.weight(1, gates * hidden, hidden),
            self.weight(1, 2 * gates * hidden) if self.rng.random() < 0.7 else None,
            hidden_size=hidden, activations=acts, alphas=(0.0,) * len(acts),
            betas=(0.0,) * len(acts),
        )  # fmt: skip
        return self.op("transpose", self.op("squeeze", y, axes=(1,)), perm=(1, 0, 2))

    def sequence_conv(self) -> Value:
        x = self.op("transpose", self.token(), perm=(0, 2, 1))
        return self.op("transpose", self._conv(x, 1, 3), perm=(0, 2, 1))

    def experts(self) -> Value:
        x = self.token()
        c, inner = self.channels(x), self.width()
        flat = self.op("reshape", x, shape=(self.B * self.S, c))
        y = self.op(
            "moe", flat, self.op("matmul", flat, self.weight(c, 3)), self.weight(3, inner, c),
            self.weight(3, c, inner), self.weight(3, inner, c), top_k=2, renormalize=True,
        )  # fmt: skip
        return self.op("reshape", y, shape=(self.B, self.S, c))

    def pick(self) -> Value:
        x = self.token()
        c = self.channels(x)
        if self.rng.random() < 0.4:
            blocks = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
            split = self.op("reshape", x, shape=(self.B, self.S, blocks, c // blocks))
            one = self.b.constant(np.array(self.rng.randrange(-blocks, blocks)))
            return self.op("gather", split, one, axis=2)
        kind = self.rng.random()
        if kind > 0.75:
            return self.pick_in_loops(x)
        if kind < 0.5:
            first = self.rng.randrange(c)
            where = list(range(first - c, 0)) + list(range(first))
        else:
            where = [self.rng.randrange(c) for _ in range(self.rng.randrange(1, c + 1))]
        return self.op("gather", x, self.b.constant(np.array(where)), axis=2)

    def pick_in_loops(self, x: Value) -> Value:
        """Shuffles blocks, or repeats them, by indices; flat, or in the shape of the blocks."""
        c = self.channels(x)
        blocks = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        index = np.arange(c).reshape(blocks, c // blocks)
        if self.rng.random() < 0.5:
            index = index.T
        if self.rng.random() < 0.4:
            index = np.repeat(index, 2, self.rng.choice((0, 1)))
        if self.rng.random() < 0.5:
            return self.op("gather", x, self.b.constant(index.reshape(-1)), axis=2)
        wide = self.op("gather", x, self.b.constant(index), axis=2)
        return self.op("reshape", wide, shape=(self.B, self.S, index.size))

    def pad(self) -> Value:
        x = self.token()
        pads = (0, 0, self.rng.randrange(3), 0, 0, self.rng.randrange(3))
        return self.op("pad", x, None, self.b.constant(np.float32(0.5)), pads=pads)

    # -- images -------------------------------------------------------------------------------

    def _conv(self, x: Value, rank: int, taps: int) -> Value:
        c = self.channels(x, 1)
        groups = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        out = groups * self.rng.choice((1, 2, 3)) if self.rng.random() < 0.8 else c
        out = out if out % groups == 0 else groups
        ones = (1,) * rank
        return self.op(
            "conv", x, self.weight(out, c // groups, *(taps,) * rank),
            self.weight(out) if self.rng.random() < 0.5 else None, groups=groups, strides=ones,
            dilations=ones, pads=(taps // 2,) * (2 * rank),
        )  # fmt: skip

    def conv(self) -> Value:
        return self._conv(self.image(), 2, self.rng.choice((1, 3)))

    def plain_conv(self) -> Value:
        x = self.image()
        return self.op(
            "conv", x, self.weight(self.width(), self.channels(x, 1), 1, 1), strides=(1, 1),
            dilations=(1, 1), pads=(0,) * 4,
        )  # fmt: skip

    def conv_transpose(self) -> Value:
        x = self.image()
        c = self.channels(x, 1)
        groups = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        return self.op(
            "conv_transpose", x, self.weight(c, self.rng.choice((1, 2, 3)), 3, 3), groups=groups,
            strides=(1, 1), dilations=(1, 1), pads=(1,) * 4, output_padding=(0, 0),
        )  # fmt: skip

    def image_norm(self) -> Value:
        x = self.image()
        c = self.channels(x, 1)
        kind = self.rng.randrange(3)
        if kind == 0:
            var = self.op("abs", self.weight(c))
            return self.op("batch_norm", x, self.weight(c), self.weight(c), self.weight(c), var)
        if kind == 1:
            return self.op("instance_norm", x, self.weight(c), self.weight(c))
        groups = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        return self.op("group_norm", x, self.weight(c), self.weight(c), groups=groups)

    def image_unary(self) -> Value:
        return self.op(self.rng.choice(UNARY), self.image())

    def image_sum(self) -> Value:
        a = self.image()
        same = [x for x in self.images if x.shape == a.shape]
        return self.op(self.rng.choice(BINARY), a, self.rng.choice(same))

    def image_join(self) -> Value:
        return self.op("concat", self.image(), self.image(), axis=1)

    def channel_shuffle(self) -> Value:
        x = self.image()
        c = self.channels(x, 1)
        blocks = self.rng.choice([d for d in range(1, c + 1) if c % d == 0])
        split = self.op("reshape", x, shape=(self.B, blocks, c // blocks, 6, 6))
        turned = self.op("transpose", split, perm=(0, 2, 1, 3, 4))
        return self.op("reshape", turned, shape=(self.B, c, 6, 6))

    def squeeze_excite(self) -> Value:
        x = self.image()
        c = self.channels(x, 1)
        mean = self.op("reduce_mean", x, axes=(2, 3), keepdims=False)
        inner = self.op("relu", self.op("matmul", mean, self.weight(c, self.width())))
        gate = self.op("sigmoid", self.op("matmul", inner, self.weight(self.channels(inner), c)))
        return self.op("mul", x, self.op("unsqueeze", gate, axes=(2, 3)))

    def pixels(self) -> Value:
        x = self.image()
        deep = self.op("space_to_depth", x, block_size=2)
        mixed = self.op(
            "conv", deep, self.weight(8, self.channels(deep, 1), 1, 1), strides=(1, 1),
            dilations=(1, 1), pads=(0,) * 4,
        )  # fmt: skip
        return self.op("depth_to_space", mixed, block_size=2, mode=self.rng.choice(("DCR", "CRD")))

    def flatten(self) -> Value:
        """Image to tokens: every channel owns a stride of the merged axis."""
        x = self.image()
        c = self.channels(x, 1)
        small = self.op("slice", x, starts=(0, 0), ends=(2, 1), axes=(2, 3))
        flat = self.op("reshape", small, shape=(self.B, 2 * c))
        wide = self.op("matmul", flat, self.weight(2 * c, self.width()))
        row = self.op("unsqueeze", wide, axes=(1,))
        return self.op("expand", row, shape=(self.B, self.S, self.channels(wide)))

    # -- the module ---------------------------------------------------------------------------

    def make(self, num_steps: int) -> Module:
        """Takes random steps, then reads everything that nothing has read."""
        token_steps: list[Callable[[], Value]] = [
            self.project, self.project, self.unary, self.binary, self.residual, self.scale,
            self.norm, self.gated, self.cut, self.parts, self.join, self.shuffle, self.reduce,
            self.repeat, self.heads, self.heads, self.recurrent, self.sequence_conv, self.experts,
            self.pick, self.pick, self.pad, self.flatten,
        ]  # fmt: skip
        image_steps: list[Callable[[], Value]] = [
            self.conv, self.conv, self.plain_conv, self.plain_conv, self.conv_transpose,
            self.image_norm, self.image_unary, self.image_sum, self.image_join,
            self.channel_shuffle, self.squeeze_excite, self.pixels,
        ]  # fmt: skip
        self.tokens.append(self.project())
        self.images.append(self.plain_conv())
        for _ in range(num_steps):
            if self.rng.random() < 0.6:
                value = self.rng.choice(token_steps)()
                if 1 < self.channels(value) <= 24:
                    self.tokens.append(value)
            else:
                value = self.rng.choice(image_steps)()
                if 1 < self.channels(value, 1) <= 24:
                    self.images.append(value)
        for i, value in enumerate([v for v in self.tokens if not v.num_uses]):
            last = self.weight(self.channels(value), 3)
            self.graph.add_output(f"t{i}", self.op("matmul", value, last))
        for i, value in enumerate([v for v in self.images if not v.num_uses]):
            pooled = self.op("reduce_mean", value, axes=(2, 3), keepdims=False)
            if self.rng.random() < 0.2:
                pooled = self.op("softmax", pooled, axis=1)
            self.graph.add_output(
                f"i{i}", self.op("matmul", pooled, self.weight(self.channels(value, 1), 3))
            )
        return Module(self.graph, f"random{num_steps}")


def random_module(seed: int) -> Module:
    """Returns the module of a seed."""
    return Maker(seed).make(2 + seed % 12)


def inputs_of(seed: int) -> dict[str, Any]:
    """Returns inputs of every random module."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.standard_normal((2, 3, 6)).astype(np.float32),
        "images": rng.standard_normal((2, 5, 6, 6)).astype(np.float32),
    }
