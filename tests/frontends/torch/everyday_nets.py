"""Models as people write them: sequence models, images, graphs, in-place code, nested arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True)
class Everyday:
    """A model with its example.

    Attributes:
        name: Name of the test.
        build: Returns the model.
        kwargs: Arguments of the example.
        axes: Names of dynamic axes by argument.
        sizes: Sizes that the model is evaluated at, besides those of the example.
    """

    name: str
    build: Callable[[], nn.Module]
    kwargs: Mapping[str, Any]
    axes: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sequence[Mapping[str, int]] = ()


BATCH = {0: "batch"}
SEQUENCE = {0: "batch", 1: "length"}
IMAGE = {0: "batch", 2: "height", 3: "width"}
BATCHES = ({"batch": 3}, {"batch": 1})
LENGTHS = ({"batch": 3, "length": 9}, {"batch": 1, "length": 4})


def _ids(*shape: int, limit: int = 50) -> torch.Tensor:
    return torch.arange(math.prod(shape)).mul(7).remainder(limit).reshape(shape)


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


class Attention(nn.Module):
    """Causal attention with the mask as a buffer."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, x: Any) -> Any:
        batch, length, width = x.size()
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        mixed = F.softmax(scores, dim=-1) @ v
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, width))


class SmallGpt(nn.Module):
    """Tied embeddings, a loss when there are targets, the last position otherwise."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, width), nn.Embedding(32, width)
        self.norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )  # fmt: skip
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Any, targets: Any = None) -> Any:
        length = ids.size(1)
        assert length <= 32
        x = self.tokens(ids) + self.positions(torch.arange(length, device=ids.device))
        x = x + self.attention(self.norm(x))
        x = x + self.mlp(x)
        if targets is None:
            return self.head(x[:, [-1], :]), None
        logits = self.head(x)
        loss = F.cross_entropy(logits.view(-1, 50), targets.view(-1), ignore_index=-1)
        return logits, loss


class PastGpt(nn.Module):
    """Keys and values of the past come in and go out as a list of pairs."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(layers))

    def forward(self, ids: Any, past: Any) -> Any:
        x, present = self.embed(ids), []
        for layer, (key, value) in zip(self.layers, past, strict=True):
            batch, length, width = x.shape
            q, k, v = (p.view(batch, length, 2, 8).transpose(1, 2) for p in layer(x).chunk(3, -1))
            k, v = torch.cat([key, k], 2), torch.cat([value, v], 2)
            present.append((k, v))
            total = k.shape[2]
            mask = torch.ones(length, total, dtype=torch.bool).tril(total - length)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + mixed.transpose(1, 2).reshape(batch, length, width)
        return self.head(x), present


class CacheGpt(nn.Module):
    """Keys and values are buffers that every call writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 50)
        self.register_buffer("keys", torch.zeros(2, 2, 24, 8))
        self.register_buffer("values", torch.zeros(2, 2, 24, 8))

    def forward(self, ids: Any, positions: Any) -> Any:
        x = self.embed(ids)
        batch, length, width = x.shape
        q, k, v = (p.view(batch, length, 2, 8).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        self.keys[:, :, positions] = k
        self.values[:, :, positions] = v
        mask = torch.arange(24)[None] <= positions[:, None]
        mixed = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        return self.head(mixed.transpose(1, 2).reshape(batch, length, width))


def _stage(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(2, out), nn.SiLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Pads what comes up to the size of what was kept, as images of any size need it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = _stage(3, 8), _stage(8, 16), _stage(16, 8)
        self.pool, self.grow = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Any) -> Any:
        kept = self.down(x)
        grown = self.grow(self.middle(self.pool(kept)))
        dy, dx = kept.shape[2] - grown.shape[2], kept.shape[3] - grown.shape[3]
        grown = F.pad(grown, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.out(self.up(torch.cat([kept, grown], 1)))


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.InstanceNorm2d(8, affine=True),
            nn.LeakyReLU(0.2, True), nn.ConvTranspose2d(8, 3, 3, 2, 1, output_padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Any) -> Any:
        return self.net(z.view(z.size(0), -1, 1, 1))


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(
            norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Flatten(),
            norm(nn.Linear(8 * 8 * 8, 1)),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return self.net(x).sigmoid().squeeze(1)


class Denoiser(nn.Module):
    """A step of a diffusion model: an embedding of the time, attention by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.into, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.qkv, self.out = nn.Conv2d(16, 48, 1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Any, t: Any) -> Any:
        rates = torch.exp(-math.log(10000) * torch.arange(8, dtype=torch.float32) / 8)
        angles = t[:, None].float() * rates[None]
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        y = F.silu(self.norm(self.into(x))) + time[:, :, None, None]
        batch, width, height, across = y.shape
        q, k, v = self.qkv(y).reshape(batch, 3, width, height * across).unbind(1)
        weights = torch.einsum("bci,bcj->bij", q, k).mul(width**-0.5).softmax(-1)
        mixed = torch.einsum("bij,bcj->bci", weights, v)
        return self.out(y + mixed.reshape(batch, width, height, across))


class GraphAttention(nn.Module):
    """Messages along edges: the largest score of every node, then sums by node."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.score = nn.Linear(4, 8), nn.Linear(16, 1)

    def forward(self, x: Any, edges: Any) -> Any:
        h = self.project(x)
        source, target = edges[0], edges[1]
        score = F.leaky_relu(self.score(torch.cat([h[source], h[target]], -1))).squeeze(-1)
        top = torch.full((x.shape[0],), -1e9).scatter_reduce(0, target, score, "amax")
        weight = (score - top[target]).exp()
        total = torch.zeros(x.shape[0]).index_add(0, target, weight)
        message = h[source] * (weight / total[target])[:, None]
        return torch.zeros_like(h).scatter_add(0, target[:, None].expand(-1, 8), message)


class SparseExperts(nn.Module):
    """Rows of the tokens that chose an expert, added where they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Any) -> Any:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            out.index_add_(0, row, expert(x[row]) * weights[row, place, None])
        return out


class Rotary(nn.Module):
    def forward(self, x: Any) -> Any:
        batch, length, heads, width = x.shape
        rates = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
        angles = torch.outer(torch.arange(length).float(), rates)
        turns = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.reshape(batch, length, heads, width // 2, 2))
        return torch.view_as_real(pairs * turns[None, :, None]).flatten(3)


class Rays(nn.Module):
    """Volume rendering: positions as waves, what is left of the light along every ray."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", 2.0 ** torch.arange(4), persistent=False)
        self.net = nn.Sequential(nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, points: Any) -> Any:
        waves = (points[..., None] * self.rates).flatten(-2)
        found = self.net(torch.cat([points, waves.sin(), waves.cos()], -1))
        colour, alpha = found[..., :3].sigmoid(), 1 - torch.exp(-found[..., 3].relu())
        left = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha], -1), -1)
        weights = left[..., :-1] * alpha
        return {"colour": (weights[..., None] * colour).sum(-2), "weights": weights}


class Shifted(nn.Module):
    """Scores by distance, shifted into place: sizes that only a part of the sequence has."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        batch, length, _ = x.shape
        scores = F.pad(self.near(x) @ self.far(x).transpose(1, 2), (1, 0))
        scores = scores.view(batch, length + 1, length)[:, 1:]
        return x + scores.softmax(-1) @ x


class Downsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv1d(4, 8, 3, stride=2)
        self.layers = nn.ModuleList((Shifted(), Shifted()))

    def forward(self, x: Any) -> Any:
        x = self.into(x).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


class InPlace(nn.Module):
    def forward(self, x: Any) -> Any:
        y = x.clone()
        y[:, 1] = 0
        y[:, 2:].mul_(2)
        y[y > 1] = -1
        z = torch.zeros(x.shape[0], 3)
        z[:, 0] = y[:, 0]
        z[:, 1:] += y[:, 2:4]
        y.transpose(0, 1)[0] = 5
        return y, z


class Nested(nn.Module):
    """Arguments and results in dicts, tuples and lists."""

    def forward(self, batch: Any, *, extra: Any = None) -> Any:
        mask = batch["mask"].float().unsqueeze(-1)
        total = (batch["x"] * mask).sum(1) / mask.sum(1)
        total = total if extra is None else total + extra[0] - extra[1]["bias"]
        return {"total": total, "parts": [total.relu(), (mask, None)]}


class Statistics(nn.Module):
    """Counts its calls and keeps a moving mean, as buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return (x - self.mean) / self.calls


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 8, 3, dilation=2, padding=4)),
            nn.PReLU(8), nn.Conv1d(8, 8, 3, stride=2, padding=1, padding_mode="circular"),
            nn.MaxPool1d(2, ceil_mode=True), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return self.net(x)


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, batch_first=True, norm_first=True, activation="gelu"
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


PAST = {0: "batch", 2: "past"}
NETS: tuple[Everyday, ...] = (
    Everyday("transformer", lambda: nn.Transformer(16, 4, 1, 1, 32, batch_first=True),
             {"src": _floats(2, 6, 16), "tgt": _floats(2, 5, 16)},
             {"src": SEQUENCE, "tgt": {0: "batch", 1: "target"}},
             ({"batch": 3, "length": 9, "target": 4}, {"batch": 1, "length": 2, "target": 7})),
    Everyday("encoder", _encoder,
             {"src": _floats(2, 6, 16), "src_key_padding_mask": torch.arange(12).view(2, 6) > 9},
             {"src": SEQUENCE, "src_key_padding_mask": SEQUENCE}, ({"batch": 3}, {"batch": 1})),
    Everyday("attention", lambda: nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True),
             {name: _floats(2, 6, 16) for name in ("query", "key", "value")},
             dict.fromkeys(("query", "key", "value"), SEQUENCE), LENGTHS),
    Everyday("gpt", SmallGpt, {"ids": _ids(2, 7)}, {"ids": SEQUENCE}, LENGTHS),
    Everyday("gpt_loss", SmallGpt, {"ids": _ids(2, 7), "targets": _ids(2, 7)},
             {"ids": SEQUENCE, "targets": SEQUENCE}, LENGTHS),
    Everyday("gpt_past", PastGpt,
             {"ids": _ids(2, 3), "past": [(_floats(2, 2, 5, 8), _floats(2, 2, 5, 8))] * 2},
             {"ids": SEQUENCE, "past": [(PAST, PAST)] * 2},
             ({"batch": 3, "length": 1, "past": 9}, {"batch": 1, "length": 4, "past": 2})),
    Everyday("gpt_cache", CacheGpt, {"ids": _ids(2, 3), "positions": torch.arange(3)}),
    Everyday("unet", UNet, {"x": _floats(2, 3, 32, 32)}, {"x": IMAGE},
             ({"batch": 3, "height": 20, "width": 24}, {"batch": 1, "height": 17, "width": 31})),
    Everyday("generator", Generator, {"z": _floats(2, 10)}, {"z": BATCH}, BATCHES),
    Everyday("discriminator", Discriminator, {"x": _floats(2, 3, 16, 16)}, {"x": BATCH}, BATCHES),
    Everyday("tcn", Convolutions, {"x": _floats(2, 4, 16)}, {"x": {0: "batch", 2: "length"}},
             LENGTHS),
    Everyday("shifted", Downsampled, {"x": _floats(2, 4, 16)}, {"x": {0: "batch", 2: "length"}},
             LENGTHS),
    Everyday("denoiser", Denoiser, {"x": _floats(2, 3, 8, 8), "t": _ids(2, limit=1000)},
             {"x": IMAGE, "t": BATCH}, ({"batch": 3, "height": 6, "width": 10},)),
    Everyday("graph", GraphAttention, {"x": _floats(6, 4), "edges": _ids(2, 11, limit=6)},
             {"x": {0: "nodes"}, "edges": {1: "edges"}}, ({"nodes": 9, "edges": 4},)),
    Everyday("experts", SparseExperts, {"x": _floats(5, 8)}, {"x": BATCH}, BATCHES),
    Everyday("rotary", Rotary, {"x": _floats(2, 6, 2, 8)}, {"x": SEQUENCE}, LENGTHS),
    Everyday("rays", Rays, {"points": _floats(3, 6, 3)}, {"points": {0: "rays"}}, ({"rays": 5},)),
    Everyday("in_place", InPlace, {"x": _floats(2, 5)}, {"x": BATCH}, BATCHES),
    Everyday("nested", Nested,
             {"batch": {"x": _floats(2, 5, 4), "mask": torch.ones(2, 5, dtype=torch.int64)},
              "extra": (_floats(4), {"bias": _floats(4)})},
             {"batch": {"x": SEQUENCE, "mask": SEQUENCE}, "extra": ({}, {"bias": {}})}, LENGTHS),
    Everyday("statistics", Statistics, {"x": _floats(2, 4)}),
)  # fmt: skip
