"""Example calls of layers: products, windows, norms, attention, images, recurrence."""

from __future__ import annotations

from itertools import product

import torch

from tests.frontends.torch.calls import Call, call
from tests.frontends.torch.tensors import bools, distinct, floats, ints

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

A, B = floats(3, 4), floats(4, 5)
_PRODUCTS = (
    call("linear.default", floats(2, 3, 4), floats(5, 4), floats(5), depth=4),
    call("linear.default", floats(4), floats(5, 4), depth=4),
    call("linear.default", floats(3, 4), floats(4), depth=4),
    call("linear.default", floats(3, 4, dtype=F16), floats(5, 4, dtype=F16), floats(5, dtype=F16)),
    call(
        "linear.default", floats(3, 4, dtype=BF16), floats(5, 4, dtype=BF16), floats(5, dtype=BF16)
    ),
    call("mm.default", A, B, depth=4),
    call("mm.default", ints(3, 4), ints(4, 5)),
    call("bmm.default", floats(2, 3, 4), floats(2, 4, 5), depth=4),
    *(
        call("matmul.default", x, y, depth=4)
        for x, y in (
            (A, B),
            (floats(4), B),
            (A, floats(4)),
            (floats(4), floats(4)),
            (floats(2, 1, 3, 4), floats(3, 4, 5)),
            (floats(2, 3, 4), floats(4)),
        )
    ),
    call("linalg_matmul.default", A, B, depth=4),
    call("mv.default", A, floats(4), depth=4),
    call("dot.default", floats(4), floats(4), depth=4),
    call("addmm.default", floats(5), A, B, depth=4),
    call("addmm.default", floats(3, 5), A, B, beta=0.5, alpha=2, depth=4),
    call("addmm.default", torch.full((5,), torch.nan), A, B, beta=0, depth=4),
    call("addmv.default", floats(3), A, floats(4), alpha=2, depth=4),
    call("baddbmm.default", floats(2, 3, 5), floats(2, 3, 4), floats(2, 4, 5), depth=4),
    call(
        "baddbmm.default",
        floats(2, 1, 5),
        floats(2, 3, 4),
        floats(2, 4, 5),
        beta=2,
        alpha=0.5,
        depth=4,
    ),
    call("addbmm.default", floats(3, 5), floats(2, 3, 4), floats(2, 4, 5), depth=8),
    call("outer.default", floats(3), ints(4)),
    call("outer.default", bools(3), bools(4)),
    call("ger.default", floats(3), floats(4)),
    call("addr.default", floats(3, 4), floats(3), floats(4), beta=2, alpha=3),
    call("inner.default", A, floats(2, 4), depth=4),
    call("inner.default", A, torch.tensor(2.0)),
    call("tensordot.default", floats(2, 3, 4), floats(4, 3, 5), [1, 2], [1, 0], depth=12),
    call("bilinear.default", floats(2, 3), floats(2, 4), floats(5, 3, 4), floats(5), depth=12),
    call("cosine_similarity.default", floats(3, 4), floats(3, 4)),
    call("cosine_similarity.default", floats(3, 1, 4), floats(5, 4), -1),
    call("linalg_cross.default", floats(2, 3), floats(2, 3)),
    call("linalg_cross.default", floats(3, 2), floats(3, 2), dim=0),
    call("cross.default", floats(2, 3), floats(2, 3), 1),
    call("linalg_det.default", floats(2, 3, 3)),
    call("det.default", floats(3, 3)),
    call("linalg_multi_dot.default", [A, B, floats(5)], depth=20),
    call("chain_matmul.default", [A, B], depth=4),
    *(
        call("einsum.default", text, list(items), depth=20)
        for text, items in (
            ("ij,jk->ik", (A, B)),
            ("bij,bjk", (floats(2, 3, 4), floats(2, 4, 5))),
            ("...i, ...i -> ...", (floats(2, 3, 4), floats(3, 4))),
            ("ii->i", (floats(3, 3),)),
            ("ij->", (A,)),
            ("b h n d, b h m d -> b h n m", (floats(1, 2, 3, 4), floats(1, 2, 5, 4))),
            ("i,j->ij", (floats(3), floats(4))),
            ("bA,Ac", (A, B)),
        )
    ),
    call(
        "transformers.grouped_mm_fallback.default",
        floats(6, 3),
        floats(4, 3, 5),
        torch.tensor([2, 2, 5, 6], dtype=torch.int32),
        depth=3,
    ),
    call(
        "_grouped_mm.default",
        floats(6, 16, dtype=BF16),
        floats(4, 16, 8, dtype=BF16),
        torch.tensor([2, 2, 5, 6], dtype=torch.int32),
        depth=16,
    ),
)

_CONV = (
    call("conv1d.default", floats(2, 3, 9), floats(4, 3, 3), floats(4), [2], [1], depth=9),
    call("conv1d.default", floats(3, 9), floats(4, 3, 3), None, [1], [1], depth=9),
    call("conv1d.padding", floats(2, 3, 9), floats(4, 3, 4), None, [1], "same", depth=12),
    call("conv1d.padding", floats(2, 3, 9), floats(4, 3, 4), None, [2], "valid", depth=12),
    call(
        "conv2d.default",
        floats(2, 4, 6, 7),
        floats(6, 2, 3, 3),
        floats(6),
        [1, 2],
        [1, 0],
        [2, 1],
        2,
        depth=18,
    ),
    call(
        "conv2d.default",
        floats(4, 6, 7),
        floats(4, 1, 3, 3),
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        4,
        depth=9,
    ),
    call(
        "conv2d.padding",
        floats(2, 4, 6, 7),
        floats(6, 4, 2, 3),
        None,
        [1, 1],
        "same",
        [2, 1],
        depth=24,
    ),
    call("conv3d.default", floats(1, 2, 3, 4, 5), floats(3, 2, 2, 2, 2), floats(3), depth=16),
    call("conv3d.padding", floats(1, 2, 3, 4, 5), floats(3, 2, 2, 2, 2), padding="same", depth=16),
    call(
        "conv_transpose1d.default",
        floats(2, 3, 5),
        floats(3, 4, 3),
        floats(4),
        [2],
        [1],
        [1],
        depth=9,
    ),
    call(
        "conv_transpose2d.input",
        floats(2, 4, 3, 4),
        floats(4, 3, 3, 3),
        floats(6),
        [2, 1],
        [1, 0],
        [1, 0],
        2,
        depth=36,
    ),
    call(
        "conv_transpose2d.input",
        floats(4, 3, 4),
        floats(4, 3, 3, 3),
        None,
        [2, 1],
        dilation=[1, 2],
        depth=36,
    ),
    call(
        "conv_transpose3d.input",
        floats(1, 2, 3, 2, 2),
        floats(2, 3, 2, 2, 2),
        stride=[2, 2, 2],
        depth=16,
    ),
    *(
        call(
            "convolution.default",
            floats(2, 4, 5, 6),
            floats(4, 4, 3, 3),
            floats(4),
            [1, 1],
            [1, 1],
            [1, 1],
            transposed,
            [0, 0],
            1,
            depth=36,
        )
        for transposed in (False, True)
    ),
    call(
        "_convolution.default",
        floats(2, 4, 5),
        floats(4, 4, 3),
        None,
        [1],
        [1],
        [1],
        False,
        [0],
        1,
        False,
        False,
        False,
        True,
        depth=12,
    ),
    call(
        "_convolution.deprecated",
        floats(2, 4, 5),
        floats(4, 4, 3),
        None,
        [1],
        [1],
        [1],
        False,
        [0],
        1,
        False,
        False,
        False,
        depth=12,
    ),
    call("im2col.default", floats(2, 3, 6, 7), [2, 3], [2, 1], [1, 0], [1, 2]),
    call("im2col.default", floats(3, 6, 7), [2, 3], [1, 1], [0, 0], [2, 2]),
    call("col2im.default", floats(2, 12, 12), [5, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
    call("col2im.default", floats(12, 12), [5, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
)

P = distinct(2, 3, 7, 8)
_POOL = (
    call("max_pool1d.default", distinct(2, 3, 9), 3, 2, 1),
    call("max_pool2d.default", P, [3, 2], [2, 2], [1, 1]),
    call("max_pool2d.default", P[0], 2),
    call("max_pool2d.default", P, [3], [2], [1], [2], True),
    call("max_pool3d.default", distinct(1, 2, 4, 4, 4), 2),
    call("max_pool1d_with_indices.default", distinct(2, 3, 9), 3),
    call("max_pool2d_with_indices.default", P, [3, 2], [2, 2], [1, 1]),
    call("max_pool2d_with_indices.default", P[1], [3, 2]),
    call("max_pool3d_with_indices.default", distinct(1, 2, 4, 4, 4), 2),
    call("avg_pool1d.default", floats(2, 3, 9), [3], [2], [1]),
    *(
        call("avg_pool2d.default", floats(2, 3, 7, 8), [3, 3], [2, 2], [1, 1], ceil, include)
        for ceil, include in product((False, True), repeat=2)
    ),
    call("avg_pool2d.default", floats(3, 7, 8), 2),
    call("avg_pool2d.default", floats(2, 3, 7, 8), [3, 3], [2, 2], [1, 1], False, True, 5),
    call("avg_pool3d.default", floats(1, 2, 4, 4, 4), [2, 2, 2]),
    call("adaptive_avg_pool1d.default", floats(2, 3, 7), [1]),
    call("adaptive_avg_pool1d.default", floats(2, 3, 7), [3]),
    call("adaptive_avg_pool2d.default", floats(2, 3, 7, 8), [1, 1]),
    call("adaptive_avg_pool2d.default", floats(3, 7, 8), [1, 1]),
    call("adaptive_avg_pool2d.default", floats(2, 3, 6, 8), [3, 2]),
    call("adaptive_avg_pool2d.default", floats(2, 3, 6, 8), [4, 8]),
    call("adaptive_avg_pool2d.default", floats(2, 3, 6, 8), [9, 1]),
    call("_adaptive_avg_pool2d.default", floats(2, 3, 6, 8), [3, 3]),
    call("_adaptive_avg_pool3d.default", floats(1, 2, 4, 4, 4), [2, 2, 2]),
    call("adaptive_avg_pool3d.default", floats(1, 2, 4, 5, 4), [2, 2, 1]),
    call("adaptive_max_pool1d.default", distinct(2, 3, 8), [4]),
    call("adaptive_max_pool1d.default", distinct(2, 3, 7), [3]),
    call("adaptive_max_pool2d.default", P, [1, 1]),
    call("adaptive_max_pool2d.default", P, [3, 1]),
    call("adaptive_max_pool3d.default", distinct(1, 2, 4, 4, 4), [2, 2, 4]),
)


def _norms() -> list[Call]:
    items = []
    for dtype in (F32, F16, BF16, F64):
        x, w, b = floats(2, 3, 8, dtype=dtype), floats(8, dtype=dtype), floats(8, dtype=dtype)
        items += [
            call("layer_norm.default", x, [8], w, b),
            call("layer_norm.default", x, [8]),
            call("rms_norm.default", x, [8], w),
            call("rms_norm.default", x * 1e-3, [8], None, None),
            call("rms_norm.default", x, [3, 8], None, 1e-6),
        ]
    x = floats(2, 6, 4, 3)
    stats = floats(6), floats(6, low=0.1)
    return [
        *items,
        call("layer_norm.default", floats(2, 3, 8), [3, 8], floats(3, 8), None, 1e-3),
        call("native_layer_norm.default", floats(2, 3, 8), [8], floats(8), floats(8), 1e-5),
        call("batch_norm.default", x, floats(6), floats(6), *stats, False, 0.1, 1e-3, True),
        call("batch_norm.default", x, None, None, *stats, False, 0.1, 1e-5, True),
        call("batch_norm.default", floats(4, 6), floats(6), None, *stats, False, 0.1, 1e-5, True),
        call("batch_norm.default", x, floats(6), floats(6), None, None, True, 0.1, 1e-5, True),
        call(
            "_native_batch_norm_legit_no_training.default",
            x,
            floats(6),
            floats(6),
            *stats,
            0.1,
            1e-5,
        ),
        call("group_norm.default", x, 3, floats(6), floats(6)),
        call("group_norm.default", x, 2, None, None, 1e-3),
        call("group_norm.default", floats(4, 6), 2, floats(6), floats(6)),
        call("native_group_norm.default", x, floats(6), floats(6), 2, 6, 12, 3, 1e-5),
        call("instance_norm.default", x, floats(6), floats(6), None, None, True, 0.1, 1e-5, True),
        call("instance_norm.default", x, None, None, None, None, True, 0.1, 1e-5, True),
        call("instance_norm.default", x, None, None, *stats, False, 0.1, 1e-5, True),
        call("_weight_norm.default", floats(4, 3, 2), floats(4, 1, 1)),
        call("_weight_norm.default", floats(4, 3, 2), floats(1, 1, 2), 2),
        call("_weight_norm_interface.default", floats(4, 3, 2), floats(4, 1, 1)),
    ]


Q, K, V = floats(2, 4, 3, 8), floats(2, 4, 5, 8, low=-1), floats(2, 4, 5, 6)
_HIDDEN = torch.tensor([[True, True, False, True, False]] * 2 + [[False] * 5])
_ATTENTION = (
    call("scaled_dot_product_attention.default", Q, K, V),
    call("scaled_dot_product_attention.default", Q, K, V, scale=0.3),
    call("scaled_dot_product_attention.default", Q, K, V, is_causal=True),
    call("scaled_dot_product_attention.default", Q, K, V, bools(2, 1, 3, 5)),
    call("scaled_dot_product_attention.default", Q, K, V, _HIDDEN),
    call("scaled_dot_product_attention.default", Q, K, V, floats(4, 3, 5)),
    call("scaled_dot_product_attention.default", Q, K, V, torch.where(_HIDDEN, 0.0, -torch.inf)),
    call("scaled_dot_product_attention.default", Q, K[:, :2], V[:, :2], enable_gqa=True),
    call("scaled_dot_product_attention.default", Q[0], K[0], V[0], floats(3, 5)),
    call("scaled_dot_product_attention.default", Q[0], K[0], V[0], floats(4, 1, 5)),
    call("scaled_dot_product_attention.default", Q[0, 0], K[0, 0], V[0, 0]),
    call("scaled_dot_product_attention.default", Q[None], K[None], V[None], floats(1, 2, 1, 3, 5)),
    call(
        "scaled_dot_product_attention.default",
        floats(3, 2, 4, 3, 8),
        floats(3, 2, 4, 5, 8),
        floats(3, 2, 4, 5, 8),
        floats(3, 5),
    ),
    call("scaled_dot_product_attention.default", Q, K[:1], V[:1]),
    call("scaled_dot_product_attention.default", Q.to(F64), K.to(F64), V.to(F64)),
    call("scaled_dot_product_attention.default", Q.to(F16), K.to(F16), V.to(F16)),
)


def _images() -> list[Call]:
    items = []
    x1, x2, x3 = floats(2, 3, 5), floats(2, 3, 5, 6), floats(1, 2, 3, 4, 5)
    for name in ("upsample_nearest", "_upsample_nearest_exact"):
        items += [
            call(f"{name}1d.default", x1, [8]),
            call(f"{name}1d.vec", x1, None, [1.7]),
            call(f"{name}2d.default", x2, [10, 4]),
            call(f"{name}2d.vec", x2, None, [2.0, 1.5]),
            call(f"{name}2d.vec", x2, [7, 6], None),
            call(f"{name}3d.default", x3, [4, 5, 7]),
            call(f"{name}3d.vec", x3, None, [2.0, 2.0, 2.0]),
        ]
    for corners in (False, True):
        items += [
            call("upsample_linear1d.default", x1, [8], corners),
            call("upsample_linear1d.vec", x1, None, corners, [2.5]),
            call("upsample_trilinear3d.default", x3, [4, 5, 7], corners),
            call("upsample_trilinear3d.vec", x3, None, corners, [2.0, 2.0, 2.0]),
        ]
        for name in (
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ):
            items += [
                call(f"{name}.default", x2, [10, 9], corners),
                call(f"{name}.default", x2, [3, 4], corners),
                call(f"{name}.default", x2, [1, 1], corners),
                call(f"{name}.vec", x2, [7, 6], corners, None),
                call(f"{name}.vec", x2, None, corners, [2.0, 1.5]),
            ]
    grid = floats(2, 4, 3, 2, low=-1.3, high=1.3)
    for mode, padding, corners in product((0, 1, 2), (0, 1, 2), (False, True)):
        items.append(call("grid_sampler.default", x2, grid, mode, padding, corners))
    items += [
        call("grid_sampler_2d.default", x2, grid, 0, 0, False),
        call("grid_sampler_3d.default", x3, floats(1, 2, 3, 2, 3, low=-1.2, high=1.2), 0, 0, True),
    ]
    for corners in (False, True):
        items.append(call("affine_grid_generator.default", floats(2, 2, 3), [2, 3, 4, 5], corners))
        items.append(
            call("affine_grid_generator.default", floats(2, 3, 4), [2, 3, 4, 5, 2], corners)
        )
    return items


def _recurrent() -> list[Call]:
    items = []
    shapes = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
    for (name, gates), layers, both, bias, first in product(
        shapes.items(), (1, 2), (False, True), (False, True), (False, True)
    ):
        hidden, inputs, directions = 4, 3, 2 if both else 1
        params = []
        for layer in range(layers):
            width = inputs if layer == 0 else hidden * directions
            for _ in range(directions):
                params += [floats(gates * hidden, width), floats(gates * hidden, hidden, low=-1)]
                params += [floats(gates * hidden), floats(gates * hidden, low=0)] if bias else []
        x = floats(2, 5, inputs) if first else floats(5, 2, inputs)
        state = floats(layers * directions, 2, hidden)
        hx = [state, state * 0.5] if name == "lstm" else state
        items.append(
            call(f"{name}.input", x, hx, params, bias, layers, 0.0, False, both, first, depth=16)
        )
    for (name, gates), bias in product(shapes.items(), (False, True)):
        weights = (floats(gates * 4, 3), floats(gates * 4, 4, low=-1))
        biases = (floats(gates * 4), floats(gates * 4, low=0)) if bias else ()
        state = floats(2, 4)
        hx = [state, state * 0.5] if name == "lstm" else state
        items.append(call(f"{name}_cell.default", floats(2, 3), hx, *weights, *biases, depth=8))
    return items


CALLS: tuple[Call, ...] = (
    *_PRODUCTS,
    *_CONV,
    *_POOL,
    *_norms(),
    *_ATTENTION,
    *_images(),
    *_recurrent(),
)
