"""What hidden channels are worth, by gradients of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import weight
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.calibration.moments import calibration_samples
from regraft.passes.experts.dense import content_of, dense_of
from regraft.passes.protocol import Context

Array = np.ndarray[Any, Any]

_PARTS = ("up", "gate", "up_bias", "gate_bias")


def gradient_importance(
    module: Module, blocks: Sequence[FfnBlock], ctx: Context, who: str
) -> list[Array]:
    """Returns for every block the sum of `|w g|` over the weights of each channel, f64[F].

    Source: Qu et al., LLaMA-MoE v2, 2024, eq. 5; Michel et al., Are Sixteen Heads Really Better
    than One?, 2019 (first-order importance).

    Raises:
        UsageError: Without gradients or samples, or for weights that are made of others.
    """
    if ctx.gradients is None:
        raise UsageError(
            f"{who}, option `method`: `gradient` needs gradients, and there is no source",
            hint="install PyTorch (`pip install regraft[torch]`), or use another method",
        )
    values = [_constants(block) for block in blocks]
    names = {value: _stored(value, module, who) for own in values for value in own}
    samples = calibration_samples(module, ctx, who)
    total: dict[str, Array] = {}
    wanted = list(dict.fromkeys(names.values()))
    for found in ctx.gradients.gradients(module, samples, wanted):
        for name in wanted:
            total[name] = total.get(name, 0.0) + found[name].astype(np.float64)
    return [_of(block, names, total) for block in blocks]


def _constants(block: FfnBlock) -> list[Value]:
    layers = [layer for layer in (block.up, block.gate, block.down) if layer is not None]
    return [layer.weight for layer in layers]


def _stored(value: Value, module: Module, who: str) -> str:
    node = value.producer
    if node is None or node.op is not weight or node.attrs["name"] not in module.weights:
        raise UsageError(
            f"{who}, option `method`: `{value.name}` is no weight of the module, and has no "
            "gradient",
            hint="run `canonicalize` before, or use another method",
        )
    name: str = node.attrs["name"]
    return name


def _of(block: FfnBlock, names: dict[Value, str], total: dict[str, Array]) -> Array:
    def product(value: Value) -> Array:
        content = content_of(value).astype(np.float64)
        return content * total[names[value]] if value in names else np.zeros_like(content)

    parts = dense_of(block, product)
    found: Array = np.abs(parts.down).sum(0)
    for name in _PARTS:
        array = getattr(parts, name)
        if array is not None:
            found = found + np.abs(array.reshape(len(array), -1)).sum(1)
    return found
