"""Tiles of scores, and of what they are made of: where queries meet keys.

Exponentials are powers of two, which GPUs compute: exp(score - largest) is exp2(s * (unit * log2 e)
- largest * log2 e), one multiplication with addition, where s is a product and `unit` what it lacks
of being a score. Only tiles at the edges of what is visible compare positions.

With a float mask the difference is taken first: rows all of whose keys a mask of the least float
hides are shared out equally, as PyTorch has them, and that float times log2 e is no float.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.parted_dot import parted_dot


@triton.jit
def exact_tanh(x):
    """Returns tanh(x) to the last digits: a series near 0, where differences would cancel."""
    square = x * x
    # x - x^3/3 + 2x^5/15 - 17x^7/315 + 62x^9/2835
    series = -0.3333333333333333 + square * (
        0.1333333333333333 + square * (-0.05396825396825397 + square * 0.021869488536155203)
    )
    t = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - t) / (1.0 + t)
    return tl.where(tl.abs(x) < 0.3, x + x * square * series, tl.where(x < 0.0, -far, far))


@triton.jit
def part_and_plane(parts, LAST_FIRST: tl.constexpr = False):
    """Returns which of `parts` tiles a program has, and of which head of which batch row.

    On one axis of the grid: others end at 65,535. With LAST_FIRST a head's last tile starts first:
    where later rows see more keys it takes longest, and would be waited for at the end.
    """
    part = tl.program_id(0) % parts
    if LAST_FIRST:
        part = parts - 1 - part
    return part, tl.program_id(0) // parts


@triton.jit
def log2_of_e():
    """Returns the factor that makes exponents of e those of two."""
    return 1.4426950408889634


@triton.jit
def score_unit(scale, MASK: tl.constexpr, SOFTCAP: tl.constexpr):
    """Returns what results of `tile_scores` times this are scores."""
    if SOFTCAP or MASK == "float":
        return 1.0
    else:
        return scale


@triton.jit
def before_difference(MASK: tl.constexpr):
    """Returns what scores and their maximum are multiplied by before their difference."""
    if MASK == "float":
        return 1.0
    else:
        return log2_of_e()


@triton.jit
def behind_difference(MASK: tl.constexpr):
    """Returns what makes the difference of those an exponent of two."""
    if MASK == "float":
        return log2_of_e()
    else:
        return 1.0


@triton.jit
def softmax_tile(s, scale, largest, log_total, IS_WIDE: tl.constexpr, MASK: tl.constexpr,
                 SOFTCAP: tl.constexpr):  # fmt: skip
    """Returns exp(score - largest - log_total) of what `tile_scores` returned.

    IS_WIDE for operands of f32: the sum of the two would have the last digits of the larger one,
    which a float mask may make the least float.
    """
    before = before_difference(MASK)
    exponent = s * (score_unit(scale, MASK, SOFTCAP) * before)
    if IS_WIDE or MASK == "float":
        exponent = exponent - largest * before - log_total * before
    else:
        exponent = exponent - (largest * before + log_total * before)
    return tl.exp2(exponent * behind_difference(MASK))


@triton.jit
def is_whole_tile(
    first_row, rows, first_key, keys, end, offset, left, right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
):  # fmt: skip
    """Whether all of these rows see all of these keys, for all that positions and lengths say."""
    is_whole = first_key + keys <= end
    if RIGHT:
        is_whole = is_whole & (first_key + keys <= first_row + offset + right + 1)
    if LEFT:
        is_whole = is_whole & (first_key >= first_row + rows - 1 + offset - left)
    return is_whole


@triton.jit
def masked_scores(
    q, k, row, column, is_whole, num_rows, end, offset, left, right, scale, softcap,
    mask_ptr, mask_row_stride, mask_column_stride,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns what `tile_scores` does; of a whole tile without a mask nothing is hidden."""
    s = tl.zeros([q.shape[0], k.shape[1]], tl.float32)
    s = parted_dot(q, k, s, PRECISION)
    capped = s
    if SOFTCAP:
        capped = exact_tanh(s * (scale / softcap))
        s = capped * softcap
    elif MASK == "float":
        s = s * scale
    if MASK != "none":
        shown = visible_places(row, column, end, offset, left, right, LEFT, RIGHT)
        shown = shown & (row < num_rows)
        place = mask_ptr + row.to(tl.int64) * mask_row_stride
        place = place + column.to(tl.int64) * mask_column_stride
        m = tl.load(place, mask=shown, other=0)
        if MASK == "bool":
            shown = shown & (m != 0)
        else:
            s += m.to(tl.float32)
        s = tl.where(shown, s, float("-inf"))
    elif not is_whole:
        shown = visible_places(row, column, end, offset, left, right, LEFT, RIGHT)
        s = tl.where(shown, s, float("-inf"))
    return s, capped


@triton.jit
def tile_scores(
    q, k, row, column, first_row, first_key, num_rows, end, offset, left, right, scale, softcap,
    mask_ptr, mask_row_stride, mask_column_stride,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns scores by their unit [M, N], -inf where hidden, and tanh(score / softcap) before.

    q is [M, D], k is [D, N], row [M, 1] and column [1, N], or all of them transposed and q and k
    exchanged, for scores [N, M]. MASK is "none", "bool" or "float". Rows beyond `num_rows` may be
    anything: nobody reads them.
    """
    rows = row.shape[0] * row.shape[1]
    keys = column.shape[0] * column.shape[1]
    is_whole = is_whole_tile(
        first_row, rows, first_key, keys, end, offset, left, right, LEFT, RIGHT
    )
    return masked_scores(
        q, k, row, column, is_whole, num_rows, end, offset, left, right, scale, softcap,
        mask_ptr, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, SOFTCAP, PRECISION,
    )  # fmt: skip


@triton.jit
def visible_places(
    row, column, end, offset, left, right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
):  # fmt: skip
    """Returns which rows see which keys."""
    shown = column < end
    if LEFT:
        shown = shown & (column >= row + offset - left)
    if RIGHT:
        shown = shown & (column <= row + offset + right)
    return shown


@triton.jit
def visible_scores(
    q, k, row, column, num_rows, end, offset, left, right, scale, softcap,
    mask_ptr, mask_row_stride, mask_column_stride,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns what `tile_scores` does of any tile, in scores."""
    s, capped = masked_scores(
        q, k, row, column, False, num_rows, end, offset, left, right, scale, softcap,
        mask_ptr, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, SOFTCAP, PRECISION,
    )  # fmt: skip
    s = s * score_unit(scale, MASK, SOFTCAP)
    return tl.where(row < num_rows, s, float("-inf")), capped


@triton.jit
def rows_tile(base, row, row_stride, column, num_rows, num_columns):
    """Returns elements of a matrix [M, N], zeros beyond its rows and columns."""
    place = base + row[:, None].to(tl.int64) * row_stride + column[None, :]
    shown = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    return tl.load(place, mask=shown, other=0.0)


@triton.jit
def columns_tile(base, row, row_stride, column, num_rows, num_columns):
    """Returns what `rows_tile` does, transposed: [N, M]."""
    place = base + row[None, :].to(tl.int64) * row_stride + column[:, None]
    shown = (row < num_rows)[None, :] & (column < num_columns)[:, None]
    return tl.load(place, mask=shown, other=0.0)


@triton.jit
def offset_and_length(
    offsets_ptr, lengths_ptr, batch, offset, T, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr
):
    """Returns the key position of a batch row's first query, and how many keys it has."""
    if HAS_OFFSETS:
        offset = tl.load(offsets_ptr + batch).to(tl.int32)
    length = T
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + batch).to(tl.int32)
    return offset, length


@triton.jit
def key_range(
    first_row,
    rows,
    T,
    length,
    offset,
    left,
    right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Returns the first key that a tile of rows may see, a multiple of BLOCK_N, and the end."""
    start = 0
    end = min(T, length)
    if RIGHT:
        end = min(end, first_row + rows + offset + right)
    if LEFT:
        start = max(0, first_row + offset - left) // BLOCK_N * BLOCK_N
    return start, end


def positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Returns queries and a positive scale of the same scores: kernels scale after the maximum."""
    if scale > 0:
        return q, scale
    return (q * 0, 1.0) if scale == 0 else (-q, -scale)
