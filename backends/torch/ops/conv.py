"""Emitters of convolutions."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library import convolving as library
from regraft.backends.torch.library.sampling import deform_conv
from regraft.backends.torch.library.windows import pad_same
from regraft.backends.torch.ops.params import call_text, operand
from regraft.ir.errors import UnsupportedError
from regraft.ir.ops import causal_conv
from regraft.ir.ops import conv as ops
from regraft.ir.ops import deform_conv as deform
from regraft.ir.ops.windows import Windows, static_pads, windows_of

_MAX_SPATIAL = 3


def spatial_rank(e: EmitContext) -> int:
    """Returns the number of spatial axes, which PyTorch has at most three of."""
    rank = len(e.attr("strides"))
    if not 1 <= rank <= _MAX_SPATIAL:
        raise UnsupportedError(
            f"`{e.node.op.name}` over {rank} spatial axes has no PyTorch form",
            hint=f"PyTorch has 1 to {_MAX_SPATIAL}",
        )
    return rank


def brief(values: tuple[int, ...], default: int) -> str | None:
    """Returns equal values as one number, None for the default."""
    if set(values) == {default}:
        return None
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))


def known_pads(e: EmitContext, windows: Windows) -> tuple[int, ...] | None:
    """Returns explicit pads, None when they depend on symbolic sizes."""
    shape = operand(e, 0).shape
    if windows.auto_pad == "none":
        return tuple(windows.pads)
    return None if shape is None else static_pads(windows, shape[2:])


def pads_of_f(pads: tuple[int, ...]) -> tuple[int, ...]:
    """Returns ONNX pads (begins, ends) in the order of `F.pad`: pairs, the last axis first."""
    rank = len(pads) // 2
    return tuple(pads[side * rank + axis] for axis in range(rank)[::-1] for side in (0, 1))


def same_padded(e: EmitContext, x: str, kernel: str, value: str = "0") -> str:
    """Returns x padded at run time such that there are ceil(size / stride) windows."""
    attrs = e.node.attrs
    upper = attrs["auto_pad"] == "same_upper"
    arguments = f"{kernel}, {attrs['strides']}, {attrs['dilations']}, {upper}, {value}"
    return e.temp(f"{e.helper(pad_same)}({x}, {arguments})", "padded")


def _emit_conv(e: EmitContext) -> str:
    weight, rank, x = operand(e, 1), spatial_rank(e), e.input(0)
    kernel = weight.shape[2:] if weight.shape is not None else ()
    pads = None
    if weight.shape is not None or e.attr("auto_pad") == "none":
        pads = known_pads(e, windows_of(e.node.attrs, kernel))
    padding = None
    if pads is None:
        x = same_padded(e, x, f"{e.input(1)}.shape[2:]")
    elif pads[:rank] == pads[rank:] and min(pads) >= 0:
        padding = brief(pads[:rank], 0)
    else:
        x = e.temp(f"F.pad({x}, {pads_of_f(pads)})", "padded")
    return call_text(
        f"F.conv{rank}d", x, e.input(1), *([] if e.optional(2) is None else [e.input(2)]),
        stride=brief(e.attr("strides"), 1), padding=padding,
        dilation=brief(e.attr("dilations"), 1), groups=brief((e.attr("groups"),), 1),
    )  # fmt: skip


def _emit_conv_transpose(e: EmitContext) -> str:
    rank, attrs = spatial_rank(e), e.node.attrs
    strides, dilations, pads = attrs["strides"], attrs["dilations"], attrs["pads"]
    extra, wanted = attrs["output_padding"] or (0,) * rank, attrs["output_shape"]
    arguments = [e.input(0), e.input(1), *([] if e.optional(2) is None else [e.input(2)])]
    is_common = (
        not wanted
        and pads[:rank] == pads[rank:]
        and min(pads) >= 0
        and all(p < max(s, d) for p, s, d in zip(extra, strides, dilations, strict=True))
    )
    if is_common:
        return call_text(
            f"F.conv_transpose{rank}d", *arguments,
            stride=brief(strides, 1), padding=brief(pads[:rank], 0),
            output_padding=brief(extra, 0), groups=brief((attrs["groups"],), 1),
            dilation=brief(dilations, 1),
        )  # fmt: skip
    call = e.helper(library.deconvolve)
    if e.optional(2) is None:
        arguments.append("None")
    where = f"output_shape={tuple(wanted)}" if wanted else f"pads={tuple(pads)}"
    upper = attrs["auto_pad"] == "same_upper"
    settings = f"{tuple(strides)}, {tuple(dilations)}, {tuple(extra)}, {attrs['groups']}"
    return f"{call}({', '.join(arguments)}, {settings}, {where}, upper={upper})"


def _emit_causal_conv(e: EmitContext) -> str:
    activation = e.attr("activation") == "silu"
    return f"{e.helper(library.convolve_causally)}({', '.join(e.inputs)}, {activation})"


def _emit_deform_conv(e: EmitContext) -> str:
    weight = operand(e, 1)
    pads = None
    if weight.shape is not None:
        pads = known_pads(e, windows_of(e.node.attrs, weight.shape[2:]))
    if pads is None:
        raise UnsupportedError("`deform_conv` with pads that depend on symbolic sizes")
    attrs = e.node.attrs
    settings = f"{attrs['strides']}, {attrs['dilations']}, {pads}"
    sharing = f"{attrs['groups']}, {attrs['offset_groups']}"
    return f"{e.helper(deform_conv)}({', '.join(e.inputs)}, {settings}, {sharing})"


EMITS = (
    Emit(ops.conv, _emit_conv),
    Emit(ops.conv_transpose, _emit_conv_transpose),
    Emit(causal_conv.causal_conv, _emit_causal_conv),
    Emit(deform.deform_conv, _emit_deform_conv),
)
