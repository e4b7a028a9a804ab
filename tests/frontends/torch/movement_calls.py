"""Example calls of overloads that move, copy or relabel elements."""

from __future__ import annotations

import torch

from tests.frontends.torch.calls import Call, call
from tests.frontends.torch.tensors import bools, floats, ints

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
X = floats(2, 3, 4)
Y = floats(2, 3, 4, 5)
CPU = torch.device("cpu")

_CASTS = (
    *(
        call("to.dtype", floats(7, low=-3, high=3), d)
        for d in (F16, BF16, F64, torch.int64, torch.bool)
    ),
    call("to.dtype", ints(5), F32),
    call("to.dtype", bools(5), F16),
    call("to.dtype", floats(5), F32),
    call("to.device", floats(5), CPU, F16),
    call("to.dtype_layout", floats(5), dtype=F64),
    call("to.other", floats(5), ints(2)),
    call("to.prim_dtype", floats(5), 7),
    call("to.prim_Device", floats(5), CPU, 6),
    call("to.prim_other", floats(5)),
    call("_to_copy.default", floats(5), dtype=F16),
    call("type_as.default", floats(5), ints(2)),
    call("_autocast_to_full_precision.default", floats(5), False, False),
    call("_autocast_to_reduced_precision.default", floats(5), False, False, F16, BF16),
    call("view.dtype", floats(5), torch.int32),
    call("view.dtype", floats(5), F32),
    *(
        call(f"{name}.default", X)
        for name in (
            "contiguous",
            "clone",
            "detach",
            "detach_copy",
            "alias",
            "alias_copy",
            "lift",
            "lift_fresh",
            "lift_fresh_copy",
            "resolve_conj",
            "resolve_neg",
        )
    ),
    call("copy.default", floats(2, 3), ints(3)),
    call("copy.default", floats(2, 3), floats(2, 3)),
)

_VIEWS = (
    call("view.default", X, [6, -1]),
    call("view.default", X, [2, 3, 4]),
    call("view.default", X, [-1]),
    call("view.default", floats(1), []),
    call("view.default", floats(0, 3), [3, 0]),
    call("view_copy.default", X, [6, 4]),
    call("reshape.default", X, [4, 6]),
    call("_unsafe_view.default", X, [4, 6]),
    call("_reshape_copy.default", X, [4, 6]),
    call("_reshape_alias.default", X, [4, 6], [6, 1]),
    call("view_as.default", X, floats(6, 4)),
    call("reshape_as.default", X, floats(6, 4)),
    call("flatten.using_ints", X, 1),
    call("flatten.using_ints", X, 0, -1),
    call("flatten.using_ints", torch.tensor(2.0)),
    call("unflatten.int", X, -1, [2, 2]),
    call("unflatten.int", X, 1, [3, -1]),
    call("ravel.default", X),
    call("permute.default", X, [2, 0, -2]),
    call("permute.default", X, [0, 1, 2]),
    call("permute_copy.default", X, [2, 0, 1]),
    call("transpose.int", X, -1, 0),
    call("transpose.int", torch.tensor(1.0), 0, -1),
    call("swapdims.default", X, 1, 2),
    call("swapaxes.default", X, 1, -1),
    call("t.default", floats(2, 3)),
    call("t.default", floats(3)),
    call("numpy_T.default", X),
    call("mT.default", X),
    call("mH.default", X),
    call("matrix_H.default", floats(2, 3)),
    call("movedim.int", X, 0, -1),
    call("movedim.intlist", X, [0, 1], [-1, 0]),
    call("moveaxis.int", X, 2, 0),
    call("moveaxis.intlist", X, [2], [0]),
    call("squeeze.default", floats(1, 3, 1)),
    call("squeeze.dim", floats(1, 3, 1), -1),
    call("squeeze.dim", floats(1, 3, 1), 1),
    call("squeeze.dim", torch.tensor(1.0), 0),
    call("squeeze.dims", floats(1, 3, 1), [0, 2]),
    call("squeeze.dims", floats(1, 3, 1), [0, 1]),
    call("unsqueeze.default", X, -1),
    call("unsqueeze.default", X, 1),
    call("unsqueeze.default", torch.tensor(1.0), 0),
    call("pixel_shuffle.default", floats(2, 8, 3, 4), 2),
    call("pixel_shuffle.default", floats(8, 3, 4), 2),
    call("pixel_unshuffle.default", floats(2, 3, 4, 6), 2),
    call("channel_shuffle.default", floats(2, 6, 3, 4), 3),
    call("native_channel_shuffle.default", floats(2, 6, 3, 4), 2),
    *(
        call(f"atleast_{n}d.default", x)
        for n in (1, 2, 3)
        for x in (torch.tensor(2.0), floats(3), floats(2, 3), X)
    ),
)

_PARTS = (
    call("slice.Tensor", X, 2, 1, 3),
    call("slice.Tensor", X, -1, 0, 9223372036854775807),
    call("slice.Tensor", X, 2, -2, 9223372036854775807),
    call("slice.Tensor", X, 2, None, -1),
    call("slice.Tensor", X, 2, -3, -1),
    call("slice.Tensor", X, 2, 0, 4, 2),
    call("slice.Tensor", X, 2, 1, None, 3),
    call("slice.Tensor", X, 2, 3, 1),
    call("slice.Tensor", X, 2, 2, 100),
    call("slice_copy.Tensor", X, 2, 1, 3),
    call("select.int", X, 1, -1),
    call("select.int", floats(3), 0, 2),
    call("select_copy.int", X, 1, 1),
    call("narrow.default", X, -1, 1, 2),
    call("narrow.default", X, -1, -3, 2),
    call("narrow.default", X, 1, 0, 3),
    call("narrow_copy.default", X, 2, 1, 2),
    call("split.Tensor", X, 3, -1),
    call("split.Tensor", X, 4, -1),
    call("split.sizes", X, [1, 3], 2),
    call("split_with_sizes.default", X, [1, 3], -1),
    call("split_with_sizes_copy.default", X, [1, 0, 3], -1),
    call("split_copy.Tensor", X, 2, 1),
    call("chunk.default", X, 2, -1),
    call("chunk.default", X, 3, -1),
    call("unsafe_chunk.default", X, 2, 1),
    call("unsafe_split.Tensor", X, 2, 1),
    call("unsafe_split_with_sizes.default", X, [1, 3], -1),
    call("tensor_split.sections", X, 3, 2),
    call("tensor_split.indices", X, [1, 2], 2),
    call("hsplit.int", X, 3),
    call("hsplit.int", floats(4), 2),
    call("hsplit.array", X, [1, 2]),
    call("vsplit.int", X, 2),
    call("vsplit.array", X, [1]),
    call("unbind.int", X, 1),
    call("unbind.int", floats(1, 2)),
    call("unbind_copy.int", X, -1),
    call("cat.default", [X, X], -1),
    call("cat.default", [X, floats(2, 1, 4)], 1),
    call("cat.default", [floats(0), X], 2),
    call("cat.default", [floats(0), floats(0)]),
    call("cat.default", [floats(2), ints(3)]),
    call("cat.default", [X]),
    call("concat.default", [X, X]),
    call("concatenate.default", [X, X], 1),
    call("stack.default", [X, X], -1),
    call("stack.default", [torch.tensor(1.0), torch.tensor(2)]),
    *(
        call(f"{name}.default", items)
        for name in ("hstack", "vstack", "row_stack", "dstack", "column_stack")
        for items in ([floats(3), floats(3)], [floats(2, 3), floats(2, 3)], [torch.tensor(1.0)] * 2)
    ),
    call("flip.default", X, [0, -1]),
    call("flip.default", X, []),
    call("fliplr.default", X),
    call("flipud.default", X),
    call("roll.default", X, [1], [2]),
    call("roll.default", X, [-1, 5], [1, 2]),
    call("roll.default", X, [5]),
    call("roll.default", X, [-3, 0], [1, 0]),
    *(call("rot90.default", X, k, [0, 2]) for k in range(-1, 4)),
)

_COPIES = (
    call("expand.default", floats(3, 1), [2, -1, 4]),
    call("expand.default", torch.tensor(1.0), [2, 3]),
    call("expand_copy.default", floats(3, 1), [3, 4]),
    call("expand_as.default", floats(1, 3), floats(2, 3)),
    call("broadcast_to.default", floats(3), [2, 3]),
    call("broadcast_tensors.default", [floats(3), floats(2, 1)]),
    call("repeat.default", X, [2, 1, 3]),
    call("repeat.default", floats(3), [2, 2]),
    call("repeat.default", floats(3), [1]),
    call("tile.default", X, [2]),
    call("tile.default", floats(3), [2, 2]),
    call("repeat_interleave.self_int", X, 2, 1),
    call("repeat_interleave.self_int", X, 3),
    call("repeat_interleave.self_int", X, 1, 1),
    call("repeat_interleave.Tensor", torch.tensor([2, 0, 3]), output_size=5),
    call("repeat_interleave.self_Tensor", X, torch.tensor([2, 0, 3]), 1, output_size=5),
    call("pad.default", X, [1, 2]),
    call("pad.default", X, [1, 2, 0, 3], "constant", 1.5),
    call("pad.default", X, [-1, 2, 0, -1]),
    call("pad.default", X, [1, 2], "reflect"),
    call("pad.default", Y, [1, 2, 2, 1], "reflect"),
    call("pad.default", X, [1, 2], "replicate"),
    call("pad.default", X, [1, 2], "circular"),
    call("pad.default", ints(3), [1, 1], "constant", 7),
    call("pad.default", X, [0, 0]),
    call("constant_pad_nd.default", X, [1, 0, 2, 0], 3),
    call("reflection_pad1d.default", X, [1, 2]),
    call("reflection_pad1d.default", X, [-1, 2]),
    call("reflection_pad2d.default", Y, [1, 2, 0, 1]),
    call("reflection_pad3d.default", floats(1, 2, 3, 4, 5), [1, 2, 0, 1, 1, 1]),
    call("replication_pad1d.default", X, [1, 2]),
    call("replication_pad2d.default", Y, [1, 2, 0, 1]),
    call("replication_pad3d.default", floats(1, 2, 3, 4, 5), [1, 2, 0, 1, 1, 1]),
    call("_pad_circular.default", X, [1, 2]),
    call("tril.default", X),
    call("tril.default", bools(3, 4), 1),
    call("triu.default", X, -1),
    call("triu.default", ints(3, 3), 1),
    *(
        call("diagonal.default", Y, k, a, b)
        for k in (0, 1, -2)
        for a, b in ((0, 1), (-1, 1), (2, 3))
    ),
    call("diagonal_copy.default", Y),
    *(
        call("diag_embed.default", X, k, a, b)
        for k in (0, 2, -1)
        for a, b in ((-2, -1), (0, 2), (3, 1))
    ),
    call("diag.default", floats(3), 1),
    call("diag.default", floats(3, 4), -1),
    call("meshgrid.default", [floats(2), floats(3)]),
    call("meshgrid.indexing", [floats(2), floats(3), floats(4)], indexing="xy"),
    call("meshgrid.indexing", [floats(2), torch.tensor(1.0)], indexing="ij"),
    call("unfold.default", X, 2, 2, 2),
    call("unfold.default", floats(2, 7, 3), 1, 3, 2),
    call("unfold.default", floats(2, 7, 3), 1, 3, 3),
    call("unfold_copy.default", floats(9), 0, 4, 1),
)

CALLS: tuple[Call, ...] = (*_CASTS, *_VIEWS, *_PARTS, *_COPIES)
