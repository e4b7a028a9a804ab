"""The pass `quantize-softmax`: what a softmax gives, in few codes made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, cast, functions, gathering, rounding, softmax
from regraft.ir.types import DType
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult
from regraft.passes.quantization.softmax_codes import Kind, SoftmaxCodes, fitted

Array = np.ndarray[Any, Any]

_MAX_NUMBERS = 1 << 16
"""Numbers of a softmax that its codes are fitted on, spread evenly over the samples."""

_LEAST = 1e-30


@dataclass(frozen=True, slots=True)
class QuantizeSoftmax:
    """Rounds what softmax gives to codes that crowd where its numbers do.

    ## What it does
    Most of what a softmax gives is near 0 and what counts is near 1: equal steps waste their codes.
    It fits, on the samples, the quantizer of the least mean square error of one kind to each
    softmax, and rounds what that gives: a code is found by a logarithm or a tangent, its value
    looked up in a table of `2 ** bits` numbers.

    ## When it applies
    To every softmax that stands in the graph as such: before `fuse` raises attention. Needs
    samples. It simulates low bits: no runtime has a kernel for such codes, so nothing gets faster.

    ## Example
    ```
    %p = softmax(%scores)
    ```
    becomes
    ```
    %u = log(softmax(%scores) + eta)
    %q = cast(clip(round(%u * a + b)))
    %p = gather(%values, %q)
    ```

    ## Exactness
    Lossy.

    ## References
    Li et al., RepQ-ViT, 2023; Zhong et al., I&S-ViT, 2023; Yang et al., DopQ-ViT, 2024.

    Args:
        kind: `log2`, `log_sqrt2`, `shift_log2` or `tangent`.
        bits: Of a code, 2 to 8.
    """

    name: ClassVar[str] = "quantize-softmax"
    contract: ClassVar[Contract] = Lossy("output")

    kind: Literal["log2", "log_sqrt2", "shift_log2", "tangent"] = "shift_log2"
    bits: int = 4

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Fits and rewrites.

        Raises:
            UsageError: Without samples, or for bits out of range.
        """
        if not 2 <= self.bits <= 8:
            raise UsageError(
                f"pass `quantize-softmax`, option `bits`: {self.bits} is not in 2 to 8"
            )
        values = [node.output for node in module.graph if node.op is softmax.softmax]
        layers: list[LayerError] = []
        for value, numbers in _seen(module, values, ctx).items():
            found = fitted(numbers, self.kind, self.bits)
            error = float(np.sqrt(found.error(numbers) / np.square(numbers).mean()))
            write_softmax(module, value, found)
            layers.append(LayerError(value.name or "softmax", self.kind, error, True, 0, 0))
        layers.sort(key=lambda layer: -layer.error)
        return PassResult(bool(layers), {"softmaxes": len(layers)}, layers=tuple(layers))


def _seen(module: Module, values: list[Value], ctx: Context) -> dict[Value, Array]:
    """Returns numbers of every value, spread over all samples."""
    samples = ctx.samples or ctx.probes
    if values and (not samples or ctx.activations is None):
        raise UsageError(
            "pass `quantize-softmax` needs samples to fit its codes, and there are none",
            hint="give inputs with --calibrate",
        )
    parts: dict[Value, list[Array]] = {value: [] for value in values}
    share = _MAX_NUMBERS // max(len(samples), 1)
    if values and ctx.activations is not None:
        for item in ctx.activations.activations(module, values, samples):
            for value, array in item.items():
                flat = array.reshape(-1)
                parts[value].append(flat[:: max(1, flat.size // share)].astype(np.float64))
    return {value: np.concatenate(each) for value, each in parts.items()}


def write_softmax(module: Module, value: Value, codes: SoftmaxCodes) -> None:
    """Replaces all uses of a value by what codes hold of it."""
    users = list(value.uses)
    maker = value.producer
    if maker is None:
        raise AssertionError("a softmax makes the value")
    following = list(maker.graph or ())
    place = following.index(maker) + 1
    b = Builder(module.graph, following[place] if place < len(following) else None, maker.loc)
    index, table = _index(b, value, codes)
    picked = b.op(gathering.gather, b.constant(table), b.op(cast.cast, index, to=DType.I32), axis=0)
    for user, slot in users:
        user.set_operand(slot, picked)


def _index(b: Builder, x: Value, codes: SoftmaxCodes) -> tuple[Value, Array]:
    """Returns the index of every number's value, f32 of whole numbers, and the values."""

    def number(value: float) -> Value:
        return b.constant(np.asarray(value, np.float32))

    top = 2**codes.bits - 1
    table = codes.values(np.arange(top + 1.0))
    kind: Kind = codes.kind
    if kind == "tangent":
        cut = b.op(arithmetic.min_, x, number(codes.scale))
        angle = b.op(arithmetic.mul, cut, number(codes.angle))
        steps = top / np.tan(codes.angle * codes.scale)
        raw = b.op(arithmetic.mul, b.op(functions.tan, angle), number(steps))
    else:
        shifted = b.op(arithmetic.add, x, number(codes.eta if kind == "shift_log2" else _LEAST))
        power = b.op(functions.log, shifted)
        if kind == "shift_log2":
            factor, offset = 1 / (np.log(2) * codes.step), -codes.low / codes.step - codes.late
        else:
            steps = 1 if kind == "log2" else 2
            factor, offset = -steps / np.log(2), steps * np.log2(codes.scale)
            table = np.append(table, 0.0)  # below the last code is 0
            top += 1
        raw = b.op(arithmetic.add, b.op(arithmetic.mul, power, number(factor)), number(offset))
    rounded = b.op(rounding.round_, raw)
    rounded = b.op(arithmetic.min_, b.op(arithmetic.max_, rounded, number(0.0)), number(float(top)))
    return rounded, table.astype(np.float32)
