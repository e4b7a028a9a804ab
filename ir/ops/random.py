"""Random tensors. The operators take a seed and are not pure: two equal calls differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]

_SEED = Attr("seed", AttrKind.FLOAT, None)  # None: chosen at each run


def _infer_shape(node: Node) -> Type:
    return TensorType(node.attrs["dtype"], tuple(node.attrs["shape"]))


random_normal = OpSpec(
    name="random_normal",
    source="ONNX RandomNormal-22",
    attrs=(
        Attr("shape", AttrKind.DIMS),
        Attr("dtype", AttrKind.DTYPE, DType.F32),
        Attr("mean", AttrKind.FLOAT, 0.0),
        Attr("scale", AttrKind.FLOAT, 1.0),  # standard deviation
        _SEED,
    ),
    traits=Trait.NONE,
    infer=_infer_shape,
    eval=lambda c: c.rng().normal(c.attrs["mean"], c.attrs["scale"], c.attrs["shape"]),
)

random_uniform = OpSpec(
    name="random_uniform",
    source="ONNX RandomUniform-22",
    attrs=(
        Attr("shape", AttrKind.DIMS),
        Attr("dtype", AttrKind.DTYPE, DType.F32),
        Attr("low", AttrKind.FLOAT, 0.0),
        Attr("high", AttrKind.FLOAT, 1.0),  # excluded
        _SEED,
    ),
    traits=Trait.NONE,
    infer=_infer_shape,
    eval=lambda c: c.rng().uniform(c.attrs["low"], c.attrs["high"], c.attrs["shape"]),
)


def _infer_multinomial(node: Node) -> Type:
    x, dtype = node.inputs[0], node.attrs["dtype"]
    if x is None or x.shape is None:
        return TensorType(dtype, None)
    if len(x.shape) != 2:
        raise node.error("expected log probabilities of shape [batch, classes]")
    return TensorType(dtype, (x.shape[0], node.attrs["sample_size"]))


def _eval_multinomial(c: Any, x: Array) -> Any:
    # the class whose log probability plus Gumbel noise is the largest is a draw from the softmax
    noise = c.rng().gumbel(size=(x.shape[0], c.attrs["sample_size"], x.shape[1]))
    return (x[:, None, :] + noise).argmax(-1)


multinomial = OpSpec(
    name="multinomial",
    source="ONNX Multinomial-22",
    operands=(Operand("x"),),  # unnormalized log probabilities
    attrs=(
        Attr("dtype", AttrKind.DTYPE, DType.I32),
        Attr("sample_size", AttrKind.INT, 1),
        _SEED,
    ),
    traits=Trait.DISCRETE,
    infer=_infer_multinomial,
    eval=_eval_multinomial,
)


def _infer_bernoulli(node: Node) -> Type:
    x = node.inputs[0]
    if x is None:
        raise node.error("the first operand is missing")
    return TensorType(node.attrs["dtype"] or x.dtype, x.shape)


bernoulli = OpSpec(
    name="bernoulli",
    source="ONNX Bernoulli-22",
    operands=(Operand("x"),),  # probabilities of drawing 1
    attrs=(Attr("dtype", AttrKind.DTYPE, None), _SEED),  # None: the element type of x
    traits=Trait.DISCRETE | Trait.ELEMENTWISE,
    infer=_infer_bernoulli,
    eval=lambda c, x: (c.rng().random(x.shape) < x).astype(x.dtype),
)

OPS: tuple[OpSpec, ...] = (random_normal, random_uniform, multinomial, bernoulli)
