"""Kernels as functions of PyTorch tensors that differentiate, compile and export.

```python
from regraft.kernels import add_rms_norm, swiglu

y, total = add_rms_norm(x, residual, weight)
```

They run on a GPU; on a CPU each computes its reference. They need the extra `triton`, which is
loaded on first use. docs/triton.md says how a kernel is chosen, read, replaced and added.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from regraft.ir.errors import UsageError

if TYPE_CHECKING:
    from regraft.backends.triton.kernels.attending import attention
    from regraft.backends.triton.kernels.coded_matrices import CodedMatrices
    from regraft.backends.triton.kernels.decoding import attention_decode
    from regraft.backends.triton.kernels.delta_attention import gated_delta_attention
    from regraft.backends.triton.kernels.entmax_backward import entmax_attention
    from regraft.backends.triton.kernels.experts import experts
    from regraft.backends.triton.kernels.gated import geglu, swiglu
    from regraft.backends.triton.kernels.grouped import grouped_linear
    from regraft.backends.triton.kernels.grouped_hidden import grouped_hidden
    from regraft.backends.triton.kernels.grouped_low_bit import grouped_low_bit_linear
    from regraft.backends.triton.kernels.grouped_low_bit_hidden import grouped_low_bit_hidden
    from regraft.backends.triton.kernels.linear import linear
    from regraft.backends.triton.kernels.linear_attending import linear_attention
    from regraft.backends.triton.kernels.logit_losses import cross_entropy
    from regraft.backends.triton.kernels.low_bit import low_bit_linear, pack_codes, unpack_codes
    from regraft.backends.triton.kernels.low_bit_experts import low_bit_experts
    from regraft.backends.triton.kernels.low_bit_integer import (
        low_bit_integer_linear,
        rounded_low_bit_linear,
    )
    from regraft.backends.triton.kernels.newton import newton_inverse
    from regraft.backends.triton.kernels.norms import (
        add_layer_norm,
        add_rms_norm,
        layer_norm,
        rms_norm,
    )
    from regraft.backends.triton.kernels.rope import rope, rotary
    from regraft.backends.triton.kernels.softmax import softmax
    from regraft.backends.triton.kernels.stepping import attention_with_cache
    from regraft.backends.triton.kernels.vocabulary_loss import linear_cross_entropy

_PACKAGE = "regraft.backends.triton.kernels"
_MODULES = {
    "CodedMatrices": "coded_matrices",
    "add_layer_norm": "norms",
    "add_rms_norm": "norms",
    "attention": "attending",
    "attention_decode": "decoding",
    "attention_with_cache": "stepping",
    "cross_entropy": "logit_losses",
    "experts": "experts",
    "entmax_attention": "entmax_backward",
    "gated_delta_attention": "delta_attention",
    "geglu": "gated",
    "grouped_hidden": "grouped_hidden",
    "grouped_linear": "grouped",
    "grouped_low_bit_hidden": "grouped_low_bit_hidden",
    "grouped_low_bit_linear": "grouped_low_bit",
    "layer_norm": "norms",
    "linear": "linear",
    "linear_attention": "linear_attending",
    "linear_cross_entropy": "vocabulary_loss",
    "low_bit_experts": "low_bit_experts",
    "low_bit_integer_linear": "low_bit_integer",
    "low_bit_linear": "low_bit",
    "newton_inverse": "newton",
    "pack_codes": "low_bit",
    "rms_norm": "norms",
    "rope": "rope",
    "rotary": "rope",
    "rounded_low_bit_linear": "low_bit_integer",
    "softmax": "softmax",
    "swiglu": "gated",
    "unpack_codes": "low_bit",
}

__all__ = [
    "CodedMatrices",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "attention_decode",
    "attention_with_cache",
    "cross_entropy",
    "entmax_attention",
    "experts",
    "gated_delta_attention",
    "geglu",
    "grouped_hidden",
    "grouped_linear",
    "grouped_low_bit_hidden",
    "grouped_low_bit_linear",
    "layer_norm",
    "linear",
    "linear_attention",
    "linear_cross_entropy",
    "low_bit_experts",
    "low_bit_integer_linear",
    "low_bit_linear",
    "newton_inverse",
    "pack_codes",
    "rms_norm",
    "rope",
    "rotary",
    "rounded_low_bit_linear",
    "softmax",
    "swiglu",
    "unpack_codes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `regraft.kernels` has no attribute `{name}`")
    missing = [need for need in ("torch", "triton") if importlib.util.find_spec(need) is None]
    if missing:
        raise UsageError(
            f"regraft.kernels.{name}: {' and '.join(missing)} cannot be imported",
            hint='pip install "regraft[triton]"',
        )
    return getattr(importlib.import_module(f"{_PACKAGE}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
