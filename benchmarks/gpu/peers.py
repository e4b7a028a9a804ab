"""Libraries that rows are compared with where they are installed: asked for by import."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

PACKAGES: Mapping[str, str] = {
    "fla": "flash-linear-attention",
    "liger_kernel": "liger-kernel",
    "flash_attn": "flash-attn",
}
"""Import name -> what `pip install` calls it."""

_EPS = 1e-6


def absent() -> list[str]:
    """Returns the packages that rows are not compared with, as they are not installed."""
    return [given for name, given in PACKAGES.items() if importlib.util.find_spec(name) is None]


def _function(module: str, name: str) -> Callable[..., Any] | None:
    """Returns a function of a package, or None without the package."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _liger(name: str) -> Callable[..., Any] | None:
    return _function("liger_kernel.transformers.functional", f"liger_{name}")


def _named(name: str, call: Callable[..., Any] | None) -> dict[str, Callable[..., Any]]:
    return {} if call is None else {name: call}


def liger_layer_norm() -> dict[str, Callable[..., Any]]:
    """Returns Liger's layer norm of (x, weight, bias)."""
    found = _liger("layer_norm")
    return _named("liger", found and (lambda x, w, b: found(x, w, b, _EPS)))


def liger_rms_norm() -> dict[str, Callable[..., Any]]:
    """Returns Liger's root mean square norm of (x, weight)."""
    found = _liger("rms_norm")
    # its backward writes into the gradient that it is given unless it is told not to
    return _named("liger", found and (lambda x, w: found(x, w, _EPS, 0.0, "llama", False)))


def liger_gated(name: str) -> dict[str, Callable[..., Any]]:
    """Returns Liger's `swiglu` or `geglu` of (gate, up)."""
    return _named("liger", _liger(name))


def liger_rope() -> dict[str, Callable[..., Any]]:
    """Returns Liger's rotation of (q, k, cos, sin), whose tables are as wide as heads; in place."""
    found = _liger("rope")

    def call(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        assert found is not None
        wide = (torch.cat([table, table], -1).unsqueeze(0) for table in (cos, sin))
        return found(q, k, *wide)

    return _named("liger", found and call)


def liger_cross_entropy(labels: Tensor) -> dict[str, Callable[..., Any]]:
    """Returns Liger's cross-entropy of logits, whose gradient is written over them."""
    found = _liger("cross_entropy")
    return _named("liger", found and (lambda x: found(x, labels)))


def liger_linear_cross_entropy(labels: Tensor) -> dict[str, Callable[..., Any]]:
    """Returns Liger's cross-entropy of (x, weight)."""
    found = _liger("fused_linear_cross_entropy")
    return _named("liger", found and (lambda x, w: found(x, w, labels)))


def fla_linear_attention() -> dict[str, Callable[..., Any]]:
    """Returns the chunked form of (q, k, v, decay), each [B, H, T, ...] as ours takes them."""
    found = _function("fla.ops.simple_gla", "chunk_simple_gla")

    def call(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Any:
        assert found is not None
        turned = (x.transpose(1, 2).contiguous() for x in (q, k, v, decay))
        return found(*turned, scale=1.0)[0].transpose(1, 2)

    return _named("fla", found and call)


def fla_gated_delta() -> dict[str, Callable[..., Any]]:
    """Returns the gated delta rule of (q, k, v, gates, beta), of which each head's first gate."""
    found = _function("fla.ops.gated_delta_rule", "chunk_gated_delta_rule")

    def call(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, beta: Tensor) -> Any:
        assert found is not None
        turned = (x.transpose(1, 2).contiguous() for x in (q, k, v, gates[..., 0], beta))
        return found(*turned, scale=1.0)[0].transpose(1, 2)

    return _named("fla", found and call)


def fla_gated() -> dict[str, Callable[..., Any]]:
    """Returns linear attention with gates per channel of (q, k, v, gates, beta), without beta."""
    found = _function("fla.ops.gla", "chunk_gla")

    def call(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, beta: Tensor) -> Any:
        assert found is not None
        turned = (x.transpose(1, 2).contiguous() for x in (q, k, v, gates))
        return found(*turned, scale=1.0)[0].transpose(1, 2)

    return _named("fla", found and call)


def fla_step() -> dict[str, Callable[..., Any]]:
    """Returns the recurrent form of (q, k, v, decay, state) for one token."""
    found = _function("fla.ops.simple_gla", "fused_recurrent_simple_gla")

    def call(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> Any:
        assert found is not None
        turned = (x.transpose(1, 2) for x in (q, k, v, decay))
        return found(*turned, scale=1.0, initial_state=state, output_final_state=True)

    return _named("fla", found and call)


def flash_attention(window: tuple[int, int] = (-1, 0)) -> dict[str, Callable[..., Any]]:
    """Returns FlashAttention's package for (q, k, v), each [B, H, T, D]."""
    found = _function("flash_attn", "flash_attn_func")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        assert found is not None
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return found(*turned, causal=window[1] == 0, window_size=window).transpose(1, 2)

    return _named("flash_attn", found and call)
