"""Experts whose weights are 4 or 8 bits, for ONNX Runtime: the kernel that takes the codes.

Without it the weights of all experts are dequantized on every run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.backends.onnx.experts_kernel import has_kernel
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.ops import moe, quant
from regraft.ir.ops.shapes import operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.rewrite import LocalRule, Reject, Rewriter
from regraft.ir.spill import stored
from regraft.ir.types import DType, TensorType, Type
from regraft.ir.weights import pack_rows, unpack_rows

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
_MIN_BLOCK = 16
_BITS = (4, 8)
_KEPT = ("top_k", "scoring", "renormalize", "routed_scale", "activation", "limit", "up_offset")
"""Attributes of `moe` that the kernel has, too."""


def _infer(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    return TensorType(x.dtype, x.shape)


def _eval(
    c: Any, x: Array, router: Array, first: Array, first_scale: Array, last: Array,
    last_scale: Array, first_bias: Array | None, last_bias: Array | None,
) -> Array:  # fmt: skip
    given = c.attrs
    up, down = (
        _decoded(codes, scale, given).astype(x.dtype)
        for codes, scale in ((first, first_scale), (last, last_scale))
    )
    gate = gate_bias = None
    up_bias = first_bias
    if given["gated"]:  # rows of gate and value in turns
        gate, up = up[:, 0::2], up[:, 1::2]
        if first_bias is not None:
            gate_bias, up_bias = first_bias[:, 0::2], first_bias[:, 1::2]
    context = _Canonical({**moe.moe.defaults, **{name: given[name] for name in _KEPT}})
    assert moe.moe.eval is not None, "it has a numpy meaning"
    out: Array = moe.moe.eval(
        context, x, router, up, down, gate, up_bias, last_bias, gate_bias, None, None
    )
    return out


class _Canonical:
    """What the evaluation of `moe` reads of its context."""

    def __init__(self, attrs: dict[str, Any]) -> None:
        self.attrs = attrs


def _decoded(codes: Array, scale: Array, attrs: Any) -> Array:
    """Returns f64[E, N, K] of packed codes [E, N, K * bits / 8] and scales [E, N, blocks]."""
    bits, group = attrs["bits"], attrs["block_size"]
    size = scale.shape[2] * group
    plain = unpack_rows(codes.reshape(-1, codes.shape[2]), bits, size).astype(np.float64)
    centred = plain.reshape(*codes.shape[:2], size) - (1 << (bits - 1))
    decoded: Array = centred * np.repeat(scale.astype(np.float64), group, 2)
    return decoded


moe_nbits = OpSpec(
    name="ort.moe_nbits",
    source="com.microsoft QMoE-1",
    operands=(
        Operand("x"),  # f32[*b, D]
        Operand("router"),  # f32[*b, E]
        Operand("first"),  # u8[E, F, D * bits / 8]; of gated ones 2 F rows, gate and value in turns
        Operand("first_scales"),  # f32[E, F, D / block_size]
        Operand("last"),  # u8[E, D, F * bits / 8]
        Operand("last_scales"),  # f32[E, D, F / block_size]
        Operand("first_bias", optional=True),  # f32[E, F]
        Operand("last_bias", optional=True),  # f32[E, D]
    ),
    attrs=(
        Attr("bits", AttrKind.INT),
        Attr("block_size", AttrKind.INT),
        Attr("gated", AttrKind.BOOL),
        # 4: products of 8-bit integers, as of linear layers
        Attr("accuracy_level", AttrKind.INT, 4),
        *(attr for attr in moe.moe.attrs if attr.name in _KEPT),
    ),
    traits=Trait.PURE | Trait.DISCRETE,
    infer=_infer,
    eval=_eval,
)


def _is_dequantized(value: Value) -> bool:
    return value.producer is not None and value.producer.op is quant.dequantize


def _codes(value: Value | None) -> Node | str:
    """Returns the node that dequantizes a matrix of experts, or why the kernel cannot take it."""
    node = None if value is None else value.producer
    if node is None or node.op is not quant.dequantize or node.inputs[0] is None:
        return "not all of its matrices are stored in codes"
    codes, block = node.inputs[0], node.attrs["block_size"]
    if codes.dtype not in (DType.I4, DType.I8) or len([v for v in node.inputs if v]) > 2:
        return "its codes are not signed ones of 4 or 8 bits around zero"
    if codes.shape is None or node.attrs["axis"] not in (2, -1) or block < _MIN_BLOCK:
        return "its scales do not lie along the sum, in blocks of 16 or more"
    if block & (block - 1) or int(str(codes.shape[2])) % block:
        return f"{codes.shape[2]} channels are no multiple of a block that is a power of two"
    if any(constant_of(v, _ANY_SIZE) is None for v in node.inputs[:2]):
        return "its codes or scales are no constants"
    return node


def nbits(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes experts by their codes, where the kernel computes what they mean."""
    up, down, gate = node.inputs[2], node.inputs[3], node.inputs[4]
    matrices = [value for value in (up, down, gate) if value is not None]
    if not any(_is_dequantized(value) for value in matrices):
        return False  # in float
    found = [_codes(value) for value in matrices]
    x = node.inputs[0]
    if not has_kernel(node) or x is None or x.dtype is not DType.F32:
        return Reject("no kernel computes these experts: weights are dequantized on every run")
    sources = [each for each in found if isinstance(each, Node)]
    if len(sources) < len(found):
        return Reject(next(each for each in found if isinstance(each, str)))
    kinds = {(_dtype(each), each.attrs["block_size"]) for each in sources}
    if len(kinds) > 1:
        return Reject("its matrices have several numbers of bits or sizes of blocks")
    ((dtype, block),) = kinds
    b = rw.builder(node)
    parts = [_operands(each) for each in sources]
    first = parts[0] if gate is None else _in_turns(parts[2], parts[0])
    name = str(getattr(sources[0].inputs[0], "name", "experts"))
    operands = []
    for part, end in ((first, "first"), (parts[1], "last")):
        rows = part[0].reshape(-1, part[0].shape[2])
        packed = pack_rows(rows, dtype.bits).reshape(*part[0].shape[:2], -1)
        operands += [b.weight(f"{name}.{end}.packed", stored(packed)), b.constant(part[1])]
    biases: list[Value | None] = [*node.inputs[5:8], *[None] * (8 - max(len(node.inputs), 5))][:3]
    shape = first[0].shape
    result = b.op(
        moe_nbits, x, node.inputs[1], *operands, _first_bias(b, biases, gate is not None, shape),
        biases[1], bits=dtype.bits, block_size=block, gated=gate is not None,
        accuracy_level=min(each.attrs["accuracy_level"] for each in sources),
        **{name: node.attrs[name] for name in _KEPT},
    )  # fmt: skip
    rw.replace(node, result)
    return True


def _dtype(node: Node) -> DType:
    codes = node.inputs[0]
    if codes is None or codes.dtype is None:
        raise AssertionError("codes have a type")
    return codes.dtype


def _operands(node: Node) -> tuple[Array, Array]:
    """Returns codes around the middle, u8[E, N, K], and scales f32[E, N, blocks]."""
    codes, scale = (constant_of(value, _ANY_SIZE) for value in node.inputs[:2])
    if codes is None or scale is None:
        raise AssertionError("asked of constants")
    middle = 1 << (_dtype(node).bits - 1)
    return (codes.astype(np.int16) + middle).astype(np.uint8), scale.astype(np.float32)


def _in_turns(gate: tuple[Array, Array], up: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns codes and scales of gate and value row by row."""
    pairs = [np.stack(each, 2) for each in zip(gate, up, strict=True)]
    codes, scale = (each.reshape(len(each), -1, each.shape[-1]) for each in pairs)
    return codes, scale


def _first_bias(
    b: Any, biases: list[Value | None], is_gated: bool, shape: tuple[int, ...]
) -> Value | None:
    """Returns the bias of the first layers, of gated ones in turns."""
    up, _, gate = biases
    if not is_gated or (up is None and gate is None):
        return up
    none = np.zeros((shape[0], shape[1] // 2), np.float32)
    rows = [none if value is None else constant_of(value, _ANY_SIZE) for value in (gate, up)]
    if any(each is None for each in rows):
        raise AssertionError("biases of experts in codes are constants")
    pair = np.stack([np.asarray(each, np.float32) for each in rows], 2)
    made: Value = b.constant(pair.reshape(shape[0], -1))
    return made


RULES: tuple[LocalRule, ...] = (LocalRule("legalize-moe-nbits", (moe.moe,), nbits),)
"""Without a choice: codes that no kernel takes are dequantized on every run."""
