"""The emitters of `low_bit_matmul` and `low_bit_moe`."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.ops.moe import experts_text
from regraft.backends.torch.ops.params import call_text
from regraft.backends.triton.kernel_calls import KernelCalls
from regraft.backends.triton.kernels import (
    coded_matrices,
    low_bit,
    low_bit_experts,
    low_bit_integer,
)
from regraft.backends.triton.low_bit import low_bit_matmul
from regraft.backends.triton.low_bit_experts import low_bit_moe


def low_bit_emit(calls: KernelCalls) -> Emit:
    """Returns the emitter; `calls` notes which kernels are called."""

    def emit(e: EmitContext) -> str:
        x, codes = e.node.inputs[:2]
        if x is None or x.shape is None or codes is None:
            raise AssertionError("a product of few bits without operands")
        is_whole = e.attr("group") == x.shape[-1]
        settings = {
            "bits": str(e.attr("bits")),
            "group": None if is_whole else str(e.attr("group")),
            "table": e.optional(4),
            "zero": str(e.attr("zero")) if e.attr("zero") and e.optional(3) is None else None,
        }
        rest = e.inputs[1:4] if e.optional(3) is not None else e.inputs[1:3]
        if not e.attr("x_scale"):
            return call_text(calls.name(low_bit.low_bit_linear), e.input(0), *rest, **settings)
        settings["x_zero"] = str(e.attr("x_zero")) if e.attr("x_zero") else None
        settings["signed"] = None if e.attr("signed") else "False"
        function = calls.name(low_bit_integer.rounded_low_bit_linear)
        return call_text(function, e.input(0), repr(e.attr("x_scale")), *rest, **settings)

    return Emit(low_bit_matmul, emit)


def low_bit_experts_emit(calls: KernelCalls) -> Emit:
    """Returns the emitter; `calls` notes which kernels are called."""

    def emit(e: EmitContext) -> str:
        names = [operand.name for operand in low_bit_moe.operands]
        text = dict(zip(names, [*e.inputs, *["None"] * (len(names) - len(e.inputs))], strict=True))
        made = calls.name(coded_matrices.CodedMatrices)

        def coded(name: str, table: str, coding: tuple[int, int, int]) -> str:
            parts = (f"{name}_zeros", table)
            zeros, numbers = (None if text[part] == "None" else text[part] for part in parts)
            bits, group, zero = coding
            return call_text(
                made, text[name], text[f"{name}_scale"], zeros=zeros, table=numbers, bits=str(bits),
                group=str(group), zero=str(zero) if zero and zeros is None else None,
            )  # fmt: skip

        hidden, down = e.attr("hidden_coding"), e.attr("down_coding")
        matrices = {
            "up": coded("up", "hidden_table", hidden),
            "down": coded("down", "down_table", down),
        }
        if text["gate"] != "None":
            matrices["gate"] = coded("gate", "hidden_table", hidden)
        function = calls.name(low_bit_experts.low_bit_experts)
        return experts_text(e, function, f'"{e.attr("activation")}"', matrices)

    return Emit(low_bit_moe, emit)
