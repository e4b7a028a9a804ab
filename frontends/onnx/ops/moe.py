"""Importers of ONNX Runtime's MoE and QMoE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Value
from regraft.ir.ops import activation, moe, quant, reshaping, slicing, softmax
from regraft.ir.types import DType
from regraft.ir.weights import unpack_rows

# its `gelu` is the tanh approximation
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "silu": "silu"}


_GATED = {1.0: "silu", 1.702: "quick_gelu"}
"""By the alpha of the swish."""

_NO_LIMIT = 1e30
_ANY_SIZE = 1 << 62
_KINDS = {4: DType.I4, 8: DType.I8}


def _moe(item: NodeImport) -> Value | Sequence[Value]:
    fields = _fields(item)
    if fields is None or item.input(6) is not None:
        return item.opaque()
    x, router, up, up_bias, down, down_bias = (item.input(i) for i in range(6))
    if up is None or down is None:
        return item.opaque()
    return _layer(item, x, router, up, down, (up_bias, down_bias), fields)


def _fields(item: NodeImport) -> dict[str, Any] | None:
    """Returns the attributes of `moe` for what experts do, None where they are not known.

    Of gated experts rows of gate and value have to lie in turns, and alpha, beta and the limit to
    be given: releases differ in what they are otherwise.
    """
    if item.attr("use_sparse_mixer", 0):
        return None
    name = item.attr("activation_type", "relu")
    if name != "swiglu":
        plain = None if item.attr("swiglu_fusion", 0) else _ACTIVATIONS.get(name)
        return None if plain is None else {"activation": plain}
    given = [item.attr(f"activation_{each}", None) for each in ("alpha", "beta")]
    limit = item.attr("swiglu_limit", None)
    if item.attr("swiglu_fusion", 0) != 1 or limit is None or None in given:
        return None
    gated = _GATED.get(round(float(given[0]), 6))
    if gated is None or limit <= 0:
        return None
    bound = 0.0 if limit > _NO_LIMIT else round(float(limit), 6)
    return {"activation": gated, "up_offset": round(float(given[1]), 6), "limit": bound}


def _layer(
    item: NodeImport, x: Value | None, router: Value | None, up: Value, down: Value,
    biases: tuple[Value | None, Value | None], fields: dict[str, Any],
) -> Value | Sequence[Value]:  # fmt: skip
    if x is None or router is None or x.shape is None or router.shape is None:
        return item.opaque()  # whether the scores need the batch axes depends on the ranks
    b = item.b
    if len(router.shape) != len(x.shape):
        router = b.op(reshaping.reshape, router, shape=(*x.shape[:-1], router.shape[-1]))
    gate, gate_bias, (up_bias, down_bias) = None, None, biases
    if "limit" in fields:
        gate, up = (_every_second(b, up, start) for start in (0, 1))
        if up_bias is not None:
            gate_bias, up_bias = (_every_second(b, up_bias, start) for start in (0, 1))
    return b.op(
        moe.moe, x, router, up, down, gate, up_bias, down_bias, gate_bias,
        top_k=item.attr("k", 1),
        **{"renormalize": bool(item.attr("normalize_routing_weights", 0)), **fields},
    )  # fmt: skip


def _every_second(b: Builder, rows: Value, start: int) -> Value:
    """Returns rows of gate (0) or value (1) of [E, 2 F, *]; of codes, those of codes and scales."""
    node = rows.producer
    if node is not None and node.op is quant.dequantize:
        parts = [None if v is None else _every_second(b, v, start) for v in node.inputs]
        return b.op(quant.dequantize, *parts, **node.attrs)
    content = constant_of(rows, _ANY_SIZE)
    if content is not None:
        made = np.ascontiguousarray(content[:, start::2])
        return b.constant(made, name=f"{rows.name}.{'gate' if start == 0 else 'up'}")
    size = None if rows.shape is None else rows.shape[1]
    end = size if isinstance(size, int) else np.iinfo(np.int64).max
    return b.op(slicing.slice_, rows, starts=(start,), ends=(end,), axes=(1,), steps=(2,))


def _quantized_moe(item: NodeImport) -> Value | Sequence[Value]:
    """Codes around the middle, in blocks; others have no counterpart or no known layout.

    Without weights of its own the kernel renormalizes, whatever its attribute says.
    """
    fields = _fields(item)
    bits = int(item.attr("expert_weight_bits", 4))
    odd = item.attr("quant_type", "int") != "int" or item.attr("weights_prepacked", -1) != 0
    odd = odd or any(item.attr(f"fc{idx}_expert_weight_bits", bits) != bits for idx in (1, 2))
    if fields is None or odd or bits not in _KINDS:
        return item.opaque()
    routing = _routing(item)
    if routing is None or any(item.input(idx) is not None for idx in range(8, 14)):
        return item.opaque()
    matrices = [_codes(item, codes, scales, bits) for codes, scales in ((2, 3), (5, 6))]
    up, down = matrices
    if up is None or down is None:
        return item.opaque()
    biases = (item.input(4), item.input(7))
    router, routed = routing
    return _layer(item, item.input(0), router, up, down, biases, fields | routed)


def _routing(item: NodeImport) -> tuple[Value | None, dict[str, Any]] | None:
    """Returns the router's scores and the attributes of `moe`, None where it has no such routing.

    Experts are chosen by the scores and weighed by other numbers, where there are any.
    """
    scores, weights = item.input(1), item.input(14)
    if weights is None or scores is None:
        return scores, {"renormalize": True}
    again = {"renormalize": bool(item.attr("normalize_routing_weights", 0))}
    node = weights.producer
    if node is None:
        return None
    if node.op is activation.sigmoid and weights is scores:
        return node.inputs[0], {"scoring": "sigmoid", **again}
    if node.op is softmax.softmax and node.inputs[0] is scores and node.attrs["axis"] in (-1, 1):
        return scores, {"scoring": "softmax", **again}
    return None


def _codes(item: NodeImport, idx: int, scale_idx: int, bits: int) -> Value | None:
    """Returns f[E, N, K] as dequantized codes, None where they are not constant."""
    packed, scale = (constant_of(item.input(i), _ANY_SIZE) for i in (idx, scale_idx))
    if packed is None or scale is None or packed.ndim != 3:
        return None
    experts, rows, width = packed.shape
    size = width * 8 // bits
    scale = scale.reshape(experts, rows, -1)
    plain = unpack_rows(packed.reshape(-1, width), bits, size).astype(np.int16)
    centred = (plain - (1 << (bits - 1))).astype(_KINDS[bits].numpy).reshape(experts, rows, size)
    name = str(getattr(item.input(idx), "name", "experts"))
    return item.b.op(
        quant.dequantize, item.b.constant(centred, name=f"{name}.codes"),
        item.b.constant(scale, name=f"{name}.scales"), axis=2, block_size=size // scale.shape[2],
        accuracy_level=int(item.attr("accuracy_level", 0)),
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    Import("MoE", {1: _moe}, "com.microsoft"),
    Import("QMoE", {1: _quantized_moe}, "com.microsoft"),
)
