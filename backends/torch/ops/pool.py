"""Emitters of pooling."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext, Emitted, Emitter
from regraft.backends.torch.library import pooling as library
from regraft.backends.torch.library.windows import pad_to_windows
from regraft.backends.torch.ops.conv import brief, known_pads, same_padded, spatial_rank
from regraft.backends.torch.ops.params import call_text, operand, sizes_param
from regraft.ir.ops import pool as ops
from regraft.ir.ops import unpool
from regraft.ir.ops.windows import windows_of
from regraft.ir.types import DType

_NARROW = frozenset({DType.I8, DType.U8})


def _lowest(e: EmitContext) -> str:
    dtype = operand(e, 0).dtype
    if dtype is DType.I8:
        return "-128"
    return "0" if dtype is DType.U8 else 'float("-inf")'


def _prepared(e: EmitContext, fill: str) -> tuple[str, str | None, bool]:
    """Returns (operand, padding, ceil_mode) of a plain pool, after padding by hand if needed."""
    x, kernel, rank = e.input(0), e.attr("kernel"), spatial_rank(e)
    pads, ceil_mode = known_pads(e, windows_of(e.node.attrs, kernel)), e.attr("ceil_mode")
    if pads is None:
        return same_padded(e, x, str(kernel), fill), None, False
    # PyTorch refuses pads above half a window, as some of its windows would see padding alone
    fits = all(0 <= pad <= size // 2 for pad, size in zip(pads, kernel * 2, strict=True))
    if pads[:rank] == pads[rank:] and fits:
        return x, brief(pads[:rank], 0), ceil_mode
    where = f"{kernel}, {e.attr('strides')}, {e.attr('dilations')}, {pads}, {ceil_mode}, {fill}"
    return e.temp(f"{e.helper(pad_to_windows)}({x}, {where})", "padded"), None, False


def _keywords(e: EmitContext, padding: str | None, ceil_mode: bool) -> dict[str, str | None]:
    kernel, strides = e.attr("kernel"), e.attr("strides")
    return {
        "stride": None if strides == kernel else brief(strides, 0),
        "padding": padding,
        "ceil_mode": "True" if ceil_mode else None,
    }


def _emit_max(e: EmitContext) -> str:
    rank, dtype = spatial_rank(e), operand(e, 0).dtype
    x, padding, ceil_mode = _prepared(e, _lowest(e))
    text = call_text(
        f"F.max_pool{rank}d",
        f"{x}.float()" if dtype in _NARROW else x,
        str(brief(e.attr("kernel"), 0)),
        **_keywords(e, padding, ceil_mode),
        dilation=brief(e.attr("dilations"), 1),
    )
    return f"{text}.to({e.dtype(dtype)})" if dtype in _NARROW and dtype is not None else text


def _emit_max_with_indices(e: EmitContext) -> Emitted:
    kernel = e.attr("kernel")
    pads = known_pads(e, windows_of(e.node.attrs, kernel))
    x = e.input(0)
    if pads is None:
        shape = f"{e.input(0)}.shape[2:]"
        upper = e.attr("auto_pad") == "same_upper"
        call = e.helper(library.same_pads)
        where = f"{shape}, {kernel}, {e.attr('strides')}, {e.attr('dilations')}, {upper}"
        pads_text = f"{call}({where})"
    else:
        pads_text = str(pads)
    settings = f"{kernel}, {e.attr('strides')}, {e.attr('dilations')}, {pads_text}"
    flags = f"{e.attr('ceil_mode')}, {e.attr('column_major')}"
    return f"{e.helper(library.max_pool_with_places)}({x}, {settings}, {flags})"


def _emit_average(e: EmitContext) -> str:
    kernel, rank, include = e.attr("kernel"), spatial_rank(e), e.attr("count_include_pad")
    pads = known_pads(e, windows_of(e.node.attrs, kernel))
    is_plain = (
        pads is not None
        and pads[:rank] == pads[rank:]
        and all(0 <= pad <= size // 2 for pad, size in zip(pads, kernel * 2, strict=True))
        and set(e.attr("dilations")) == {1}
    )
    if not is_plain or pads is None:
        return _summed(e, pads, f"mean_include={include}" if include else "mean=True")
    keywords = _keywords(e, brief(pads[:rank], 0), e.attr("ceil_mode"))
    counted = None if include or not any(pads) else "False"
    return call_text(
        f"F.avg_pool{rank}d", e.input(0), str(brief(kernel, 0)), **keywords,
        count_include_pad=counted,
    )  # fmt: skip


def _summed(e: EmitContext, pads: tuple[int, ...] | None, how: str) -> str:
    kernel = e.attr("kernel")
    text = str(pads)
    if pads is None:
        call = e.helper(library.same_pads)
        upper = e.attr("auto_pad") == "same_upper"
        where = f"{e.input(0)}.shape[2:], {kernel}, {e.attr('strides')}, {e.attr('dilations')}"
        text = f"{call}({where}, {upper})"
    settings = f"{kernel}, {e.attr('strides')}, {e.attr('dilations')}, {text}"
    function = library.lp_pool if how.startswith("p=") else library.average_pool
    how = {"mean_include=True": "count_pads=True", "mean=True": "count_pads=False"}.get(how, how)
    return f"{e.helper(function)}({e.input(0)}, {settings}, {e.attr('ceil_mode')}, {how})"


def _emit_lp(e: EmitContext) -> str:
    spatial_rank(e)
    pads = known_pads(e, windows_of(e.node.attrs, e.attr("kernel")))
    return _summed(e, pads, f"p={e.attr('p')}")


def _over_planes(text: str) -> Emitter:
    def run(e: EmitContext) -> str:
        rank, x = operand(e, 0).rank, e.input(0)
        dims = f"tuple(range(2, {x}.dim()))" if rank is None else str(tuple(range(2, rank)))
        if dims == "()":
            return x
        return text.format(x=x, dims=dims, p=e.node.attrs.get("p"))

    return run


def _emit_max_unpool(e: EmitContext) -> str:
    attrs = e.node.attrs
    windows = f"{attrs['kernel']}, {attrs['strides']}, {attrs['pads']}"
    arguments = f"{e.input(0)}, {e.input(1)}, {sizes_param(e, 'output_shape')}, {windows}"
    return f"{e.helper(library.unpool)}({arguments})"


def _emit_col2im(e: EmitContext) -> str:
    attrs = e.node.attrs
    pads, rank = attrs["pads"], len(attrs["strides"])
    image, block = sizes_param(e, "image_shape"), sizes_param(e, "block_shape")
    if rank == 2 and pads[:rank] == pads[rank:]:
        return call_text(
            "F.fold", e.input(0), str(image), str(block),
            dilation=brief(attrs["dilations"], 1), padding=brief(pads[:rank], 0),
            stride=brief(attrs["strides"], 1),
        )  # fmt: skip
    settings = f"{attrs['strides']}, {attrs['dilations']}, {pads}"
    return f"{e.helper(library.fold_columns)}({e.input(0)}, {image}, {block}, {settings})"


EMITS = (
    Emit(ops.max_pool, _emit_max),
    Emit(ops.max_pool_with_indices, _emit_max_with_indices),
    Emit(ops.average_pool, _emit_average),
    Emit(ops.lp_pool, _emit_lp),
    Emit(ops.global_max_pool, _over_planes("{x}.amax({dims}, keepdim=True)")),
    Emit(ops.global_average_pool, _over_planes("{x}.mean({dims}, keepdim=True)")),
    Emit(
        ops.global_lp_pool,
        _over_planes("torch.linalg.vector_norm({x}, {p}, dim={dims}, keepdim=True)"),
    ),
    Emit(unpool.max_unpool, _emit_max_unpool),
    Emit(unpool.col2im, _emit_col2im),
)
