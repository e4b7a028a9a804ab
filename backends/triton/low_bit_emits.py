"""The emitter of `low_bit_matmul`."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.ops.params import call_text
from regraft.backends.triton.kernel_calls import KernelCalls
from regraft.backends.triton.kernels import low_bit, low_bit_integer
from regraft.backends.triton.low_bit import low_bit_matmul


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
