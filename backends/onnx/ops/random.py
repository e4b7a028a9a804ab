"""Emitters of random tensors."""

from __future__ import annotations

import numpy as np

from regraft.backends.onnx.emitter import Emit, EmitContext, Emitter, direct
from regraft.ir.ops import random as ops


def _generator(op_type: str, *names: str) -> Emitter:
    def run(e: EmitContext) -> None:
        attrs = e.node.attrs
        values = {name: attrs[name] for name in ("dtype", "seed", *names)}
        shape = attrs["shape"]
        if all(isinstance(dim, int) for dim in shape):
            e.emit(op_type, [], shape=shape, **values)
            return
        # the shape attribute is static: sizes of run time come with a tensor
        like = e.op("ConstantOfShape", e.ints(shape), value=np.zeros(1, np.float32))
        e.emit(f"{op_type}Like", [like], **values)

    return run


EMITS: tuple[Emit, ...] = (
    Emit(ops.random_normal, {13: _generator("RandomNormal", "mean", "scale")}),
    Emit(ops.random_uniform, {13: _generator("RandomUniform", "low", "high")}),
    Emit(ops.multinomial, {13: direct("Multinomial", "dtype", "sample_size", "seed")}),
    Emit(ops.bernoulli, {15: direct("Bernoulli", "dtype", "seed")}),
)
