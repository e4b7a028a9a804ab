"""Feature maps of linear attention, of tiles that a kernel has loaded, and their gradient.

None stands in memory: kernels of chunks map what they load, and a kernel of rows leads the gradient
by the features back to what was mapped. Source: Katharopoulos et al. 2020 (`elu`: elu(x) + 1);
Kasai et al. 2021 (`relu`); Zhang et al. 2024 (`exp`; `hedgehog`: softmax(x) beside softmax(-x)).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention import adjacent
from regraft.backends.triton.kernels.attention_tiles import part_and_plane
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton

LINEAR_FEATURES = ("none", "relu", "elu", "exp", "softmax", "hedgehog")


@triton.jit
def share_parts(y, mask, AXIS: tl.constexpr):
    """Returns the largest element along an axis and the sum of exponentials, of what is there."""
    y = tl.where(mask, y, -3.0e38)
    top = tl.max(y, axis=AXIS, keep_dims=True)
    return top, tl.sum(tl.exp(y - top), axis=AXIS, keep_dims=True)


@triton.jit
def tile_features(x, mask, is_first, MAP: tl.constexpr, AXIS: tl.constexpr):
    """Returns the features f32 of a tile that holds whole rows; zeros where nothing is.

    Of `hedgehog`, channels stand twice along the axis, and `is_first` is where the first are.
    """
    y = x.to(tl.float32)
    if MAP == "relu":
        y = tl.where(y < 0.0, 0.0, y)
    elif MAP == "elu":
        y = tl.where(y > 0, y + 1.0, tl.exp(tl.minimum(y, 0.0)))
    elif MAP == "exp":
        y = tl.exp(y)
    elif MAP == "softmax":
        top, total = share_parts(y, mask, AXIS)
        y = tl.exp(tl.where(mask, y - top, 0.0)) / total
    elif MAP == "hedgehog":
        y = tl.where(is_first, y, -y)
        top, total = share_parts(y, mask & is_first, AXIS)
        other_top, other_total = share_parts(y, mask & (is_first == 0), AXIS)
        top = tl.where(is_first, top, other_top)
        y = tl.exp(tl.where(mask, y - top, 0.0)) / tl.where(is_first, total, other_total)
    return tl.where(mask, y, 0.0)


@triton.jit
def column_features(
    x, mask, is_first, rows, rows_mask, MAP: tl.constexpr
):  # fmt: skip
    """Returns the features f32 of some columns x of rows, all of whose channels are `rows`."""
    if MAP == "softmax" or MAP == "hedgehog":
        whole = rows.to(tl.float32)
        y = x.to(tl.float32)
        top, total = share_parts(whole, rows_mask, 1)
        if MAP == "hedgehog":
            y = tl.where(is_first, y, -y)
            other_top, other_total = share_parts(-whole, rows_mask, 1)
            top = tl.where(is_first, top, other_top)
            total = tl.where(is_first, total, other_total)
        y = tl.where(mask, tl.exp(tl.where(mask, y - top, 0.0)) / total, 0.0)
    else:
        y = tile_features(x, mask, is_first, MAP, 1)
    return y


@triton.jit
def feature_gradient_kernel(
    x_ptr, other_ptr, dfeatures_ptr, own_ptr, dx_ptr, dots_ptr,
    x_batch_stride, x_head_stride, x_row_stride,
    other_batch_stride, other_head_stride, other_row_stride, H, T, D,
    HAS_OWN: tl.constexpr,
    MAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of ROWS rows of a head, and their features times what came in."""
    part, plane = part_and_plane(tl.cdiv(T, ROWS))
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    row = (part * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    mask = (row < T)[:, None] & (d < D)[None, :]
    x_base = x_ptr + batch * x_batch_stride + head * x_head_stride
    x = tl.load(x_base + row[:, None] * x_row_stride + d[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)
    place = plane.to(tl.int64) * T + row
    half: tl.constexpr = "softmax" if MAP == "hedgehog" else MAP
    copies: tl.constexpr = 2 if MAP == "hedgehog" else 1
    given = dfeatures_ptr + place[:, None] * (D * copies) + d[None, :]
    dy = tl.load(given, mask=mask, other=0.0).to(tl.float32)
    y = tile_features(x, mask, mask, half, 1)
    if MAP == "hedgehog":
        dz = tl.load(given + D, mask=mask, other=0.0).to(tl.float32)
        z = tile_features(-x, mask, mask, half, 1)
    if HAS_OWN:
        dots = tl.sum(y * dy, axis=1)
        other_base = other_ptr + batch * other_batch_stride + head * other_head_stride
        other_place = other_base + row[:, None] * other_row_stride + d[None, :]
        other = tl.load(other_place, mask=mask, other=0.0).to(tl.float32)
        own = tl.load(own_ptr + place, mask=row < T, other=0.0)[:, None]
        dy += own * tile_features(other, mask, mask, half, 1)
        if MAP == "hedgehog":
            dots += tl.sum(z * dz, axis=1)
            dz += own * tile_features(-other, mask, mask, half, 1)
        tl.store(dots_ptr + place, dots, mask=row < T)
    if MAP == "relu":
        dy = tl.where(x > 0, dy, 0.0)
    elif MAP == "elu":
        dy = tl.where(x > 0, dy, dy * y)  # exp(x) is what the map itself is there
    elif MAP == "exp":
        dy = dy * y
    elif MAP == "softmax":
        dy = y * (dy - tl.sum(y * dy, axis=1, keep_dims=True))
    elif MAP == "hedgehog":
        dy = y * (dy - tl.sum(y * dy, axis=1, keep_dims=True))
        dy -= z * (dz - tl.sum(z * dz, axis=1, keep_dims=True))
    out = dx_ptr + place[:, None] * D + d[None, :]
    tl.store(out, dy.to(dx_ptr.dtype.element_ty), mask=mask)


def features_of(x: Tensor, name: str) -> Tensor:
    """Returns the features of x along its last axis."""
    match name:
        case "relu":
            return torch.relu(x)
        case "elu":
            return torch.nn.functional.elu(x) + 1
        case "exp":
            return x.exp()
        case "softmax":
            return x.softmax(-1)
        case "hedgehog":
            return torch.cat((x.softmax(-1), (-x).softmax(-1)), -1)
        case _:
            return x


def num_features(size: int, name: str) -> int:
    """Returns how many features `size` channels have."""
    return 2 * size if name == "hedgehog" else size


def reference_feature_gradient(
    x: Tensor, other: Tensor, dfeatures: Tensor, own: Tensor | None, feature_map: str
) -> tuple[Tensor, Tensor]:
    """Returns the gradient by x of features, and [B, H, T] sums of features times what came in.

    `own` [B, H, T] adds its multiple of the features of `other` to what came in.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y, dy = features_of(x.to(wide), feature_map), dfeatures.to(wide)
    dots = y.new_empty(0)
    if own is not None:
        dots = (y * dy).sum(-1)
        dy = dy + own.unsqueeze(-1) * features_of(other.to(wide), feature_map)
    D = x.shape[-1]
    match feature_map:
        case "relu":
            dx = torch.where(x > 0, dy, 0)
        case "elu":
            dx = torch.where(x > 0, dy, dy * y)
        case "exp":
            dx = dy * y
        case "softmax":
            dx = y * (dy - (y * dy).sum(-1, keepdim=True))
        case "hedgehog":
            parts = (y * dy).unflatten(-1, (2, D)).sum(-1, keepdim=True)
            each = y.unflatten(-1, (2, D)) * (dy.unflatten(-1, (2, D)) - parts)
            dx = each.select(-2, 0) - each.select(-2, 1)
        case _:
            dx = dy
    return dx.to(x.dtype), dots


def _allocate_feature_gradient(
    x: Tensor, other: Tensor, dfeatures: Tensor, own: Tensor | None, feature_map: str
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    dots = (0,) if own is None else x.shape[:3]
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(dots, dtype=wide, device=x.device),
    )


def _launch_feature_gradient(
    x: Tensor, other: Tensor, dfeatures: Tensor, own: Tensor | None, feature_map: str
) -> tuple[Tensor, Tensor]:
    dx, dots = _allocate_feature_gradient(x, other, dfeatures, own, feature_map)
    B, H, T, D = x.shape
    if dx.numel() == 0:
        return dx, dots.zero_()
    x, other = adjacent(x, other)
    config = config_for("feature_gradient", x, D)
    wrap_triton(feature_gradient_kernel)[(triton.cdiv(T, config["rows"]) * B * H,)](
        x, other, dfeatures.contiguous(), dx if own is None else own.contiguous(), dx, dots,
        *x.stride()[:3], *other.stride()[:3], H, T, D,
        HAS_OWN=own is not None,
        MAP=feature_map,
        ROWS=config["rows"],
        BLOCK_D=block_of(D),
        num_warps=config["warps"],
    )  # fmt: skip
    return dx, dots


feature_gradient = operator(
    "linear_feature_gradient",
    _launch_feature_gradient,
    allocate=_allocate_feature_gradient,
    reference=reference_feature_gradient,
    kernel=feature_gradient_kernel,
)
