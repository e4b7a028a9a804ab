"""Generated networks of the usual sizes, with random weights that keep values near one."""

from __future__ import annotations

import numpy as np

from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context


class _Writer:
    """Lines of a graph and the types of its weights."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: dict[str, tuple[int, ...]] = {}

    def op(self, name: str, call: str) -> str:
        self.lines.append(f"%{name} = {call}")
        return name

    def weight(self, name: str, *shape: int) -> str:
        self.weights[name] = shape
        self.lines.append(f"%{name} = weight @{name}")
        return name

    def linear(self, name: str, x: str, width: int, to: int) -> str:
        w, b = self.weight(f"{name}.w", width, to), self.weight(f"{name}.b", to)
        return self.op(f"{name}.y", f"add(%{self.op(name, f'matmul(%{x}, %{w})')}, %{b})")

    def norm(self, name: str, x: str, width: int) -> str:
        gain, shift = self.weight(f"{name}.gain", width), self.weight(f"{name}.shift", width)
        return self.op(name, f"layer_norm(%{x}, %{gain}, %{shift})")

    def conv(self, name: str, x: str, shape: tuple[int, int, int], stride: int = 1) -> str:
        out, into, kernel = shape
        w, b = self.weight(f"{name}.w", out, into, kernel, kernel), self.weight(f"{name}.b", out)
        pad = kernel // 2
        return self.op(
            name,
            f"conv(%{x}, %{w}, %{b}) {{strides = [{stride}, {stride}], dilations = [1, 1], "
            f"pads = [{pad}, {pad}, {pad}, {pad}]}}",
        )

    def module(self, inputs: str, last: str) -> Module:
        head = [
            f"weight @{name} : f32{list(shape)} role=param = random(0)"
            for name, shape in self.weights.items()
        ]
        body = "\n  ".join(self.lines)
        text = "\n".join(["symbol B", "symbol S", *head])
        module = parse_module(f"{text}\ngraph({inputs}) {{\n  {body}\n  return %{last}\n}}\n")
        rng = np.random.default_rng(0)
        for name, shape in self.weights.items():
            array = rng.standard_normal(shape, dtype=np.float32)
            if len(shape) > 1:
                inner = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
                array /= np.float32(np.sqrt(inner))
            if name.endswith(".gain"):
                array = np.float32(1) + array / np.float32(10)
            module.weights.set(name, ArrayWeight(array))
        for item in (Canonicalize(), Fuse(), Canonicalize()):
            item.run(module, Context())
        return module


def _layers(w: _Writer, x: str, layers: int, hidden: int) -> str:
    heads, each = hidden // 64, 64
    for i in range(layers):
        n = w.norm(f"l{i}.n1", x, hidden)
        parts = []
        for part in "qkv":
            y = w.linear(f"l{i}.{part}", n, hidden, hidden)
            y = w.op(f"l{i}.{part}.heads", f"reshape(%{y}) {{shape = [B, S, {heads}, {each}]}}")
            perm = "[0, 2, 3, 1]" if part == "k" else "[0, 2, 1, 3]"
            parts.append(w.op(f"l{i}.{part}.t", f"transpose(%{y}) {{perm = {perm}}}"))
        q, k, v = parts
        scale = w.op(f"l{i}.scale", "literal f32[] 0.125")
        scores = w.op(f"l{i}.scores", f"matmul(%{q}, %{k})")
        scaled = w.op(f"l{i}.scaled", f"mul(%{scores}, %{scale})")
        soft = w.op(f"l{i}.soft", f"softmax(%{scaled}) {{axis = -1}}")
        mixed = w.op(f"l{i}.mixed", f"matmul(%{soft}, %{v})")
        back = w.op(f"l{i}.back", f"transpose(%{mixed}) {{perm = [0, 2, 1, 3]}}")
        flat = w.op(f"l{i}.flat", f"reshape(%{back}) {{shape = [B, S, {hidden}]}}")
        x = w.op(f"l{i}.r1", f"add(%{x}, %{w.linear(f'l{i}.o', flat, hidden, hidden)})")
        n = w.norm(f"l{i}.n2", x, hidden)
        up = w.op(f"l{i}.act", f"gelu(%{w.linear(f'l{i}.up', n, hidden, 4 * hidden)})")
        x = w.op(f"l{i}.r2", f"add(%{x}, %{w.linear(f'l{i}.down', up, 4 * hidden, hidden)})")
    return w.norm("last", x, hidden)


def encoder(layers: int = 12, hidden: int = 768, vocabulary: int = 30522) -> Module:
    """Returns an encoder with a classifier, i64[B, S] -> f32[B, 2]; BERT-base by default."""
    w = _Writer()
    table = w.weight("words", vocabulary, hidden)
    x = _layers(w, w.op("embedded", f"gather(%{table}, %ids) {{axis = 0}}"), layers, hidden)
    mean = w.op("mean", f"reduce_mean(%{x}) {{axes = [1], keepdims = false}}")
    return w.module("%ids : i64[B, S]", w.linear("head", mean, hidden, 2))


def vision_transformer(layers: int = 12, hidden: int = 768) -> Module:
    """Returns a vision transformer for 14 x 14 patches, f32[B, 3, 224, 224] -> f32[B, 1000]."""
    w = _Writer()
    weight, bias = w.weight("patch.w", hidden, 3, 16, 16), w.weight("patch.b", hidden)
    x = w.op(
        "patch",
        f"conv(%x, %{weight}, %{bias}) "
        "{strides = [16, 16], dilations = [1, 1], pads = [0, 0, 0, 0]}",
    )
    x = w.op("rows", f"reshape(%{x}) {{shape = [B, {hidden}, 196]}}")
    x = w.op("tokens", f"transpose(%{x}) {{perm = [0, 2, 1]}}")
    start = len(w.lines)
    x = _layers(w, x, layers, hidden)
    w.lines[start:] = [line.replace("[B, S,", "[B, 196,") for line in w.lines[start:]]
    mean = w.op("mean", f"reduce_mean(%{x}) {{axes = [1], keepdims = false}}")
    return w.module("%x : f32[B, 3, 224, 224]", w.linear("head", mean, hidden, 1000))


def residual_network() -> Module:
    """Returns a ResNet-50 with folded norms, f32[B, 3, 224, 224] -> f32[B, 1000]."""
    w = _Writer()
    x = w.op("stem.a", f"relu(%{w.conv('stem', 'x', (64, 3, 7), 2)})")
    x = w.op(
        "pool",
        f"max_pool(%{x}) {{kernel = [3, 3], strides = [2, 2], dilations = [1, 1], "
        "pads = [1, 1, 1, 1]}",
    )
    width = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        inner = 64 << stage
        for i in range(count):
            name, stride = f"s{stage}.{i}", 2 if stage and not i else 1
            h = w.op(f"{name}.a1", f"relu(%{w.conv(f'{name}.c1', x, (inner, width, 1))})")
            h = w.op(f"{name}.a2", f"relu(%{w.conv(f'{name}.c2', h, (inner, inner, 3), stride)})")
            h = w.conv(f"{name}.c3", h, (4 * inner, inner, 1))
            if not i:
                x = w.conv(f"{name}.skip", x, (4 * inner, width, 1), stride)
                width = 4 * inner
            x = w.op(f"{name}.out", f"relu(%{w.op(f'{name}.sum', f'add(%{h}, %{x})')})")
    mean = w.op("mean", f"reduce_mean(%{x}) {{axes = [2, 3], keepdims = false}}")
    return w.module("%x : f32[B, 3, 224, 224]", w.linear("head", mean, width, 1000))
