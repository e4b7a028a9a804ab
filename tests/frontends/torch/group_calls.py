"""Example calls over groups and runs of elements: bags, counts, running extrema, distances."""

from __future__ import annotations

import torch

from tests.frontends.torch.calls import Call, call
from tests.frontends.torch.tensors import bools, distinct, floats, ints

X = distinct(3, 5)
TIES = torch.tensor([[1.0, 1.0, 0.0, 3.0, 3.0, 2.0]])
NANS = torch.tensor([1.0, torch.nan, 2.0, torch.nan, 3.0])
INF = float("inf")
ZEROS = torch.tensor([0.0, -0.0, 1.0, -1.0])

_RUNNING = (
    *(
        call(f"{name}.default", x, dim)
        for name in ("cummax", "cummin")
        for x, dim in ((X, 1), (X, 0), (TIES, -1), (ints(4, 9), 1), (bools(7), 0),
                       (torch.tensor(2.0), 0))
    ),
    call("cummax.default", NANS, 0),
    call("cummin.default", NANS, 0),
    call("logcumsumexp.default", floats(3, 7), 1),
    call("logcumsumexp.default", torch.tensor([-INF, -INF, 1.0, 90.0, -90.0]), 0),
    call("logcumsumexp.default", torch.tensor(1.0), 0),
)  # fmt: skip

TABLE, INDICES, OFFSETS = floats(7, 4), ints(6, low=0, high=7), torch.tensor([0, 2, 2, 5])
_BAGS = (
    *(
        call(f"{name}.default", TABLE, INDICES, OFFSETS, False, mode, types_only=False)
        for name in ("_embedding_bag", "_embedding_bag_forward_only")
        for mode in (0, 1, 2)
    ),
    call("_embedding_bag.default", TABLE, INDICES, torch.tensor([0, 2, 6]), False, 0, False,
         floats(6), True),
    *(
        call("embedding_bag.padding_idx", TABLE, torch.tensor([0, 2, 3, 2, 2, 6]),
             torch.tensor([0, 3]), False, mode, False, None, False, 2)
        for mode in (0, 1, 2)
    ),
    call("bincount.default", ints(10, low=0, high=7)),
    call("bincount.default", ints(10, low=0, high=7), None, 9),
    call("bincount.default", ints(10, low=0, high=7), floats(10), 2),
)  # fmt: skip

_DISTANCES = (
    *(
        call(f"{name}.default", floats(2, 3, 4), floats(2, 5, 4), p, None)
        for name in ("cdist", "_cdist_forward")
        for p in (1.0, 2.0, 3.0)
    ),
    call("cdist.default", floats(3, 4), floats(5, 4), INF),
    call("cdist.default", floats(3, 4), floats(5, 4), 0.0),
    call("dist.default", floats(3, 4), floats(4), 2),
    call("dist.default", floats(3, 4), floats(4), -INF),
    call("dist.default", floats(3, 4), floats(4), 1.5),
)

_LABELS = torch.tensor([[1, 3, -1, 0, 2], [0, -1, 1, 2, 3], [4, 2, 1, -1, 0]])
_LOSSES = (
    *(
        call("multilabel_margin_loss.default", floats(3, 5), _LABELS, reduction)
        for reduction in (0, 1, 2)
    ),
    call("multilabel_margin_loss.default", floats(5), _LABELS[0], 0),
)

_SIGNS = (
    call("angle.default", ZEROS),
    call("signbit.default", ZEROS),
    call("copysign.Tensor", floats(4), ZEROS),
    call("copysign.Scalar", floats(4), -0.0),
    call("ldexp.Tensor", floats(3, 4), ints(4)),
    call("median.default", distinct(3, 5)),
    call("median.default", distinct(2, 5)),
    call("diagonal_scatter.default", floats(4, 4), floats(4)),
    call("diagonal_scatter.default", floats(2, 4, 5), floats(2, 4), 1, 1, 2),
    call("diagonal_scatter.default", floats(4, 5, 2), floats(2, 3), -1, 0, 1),
)

_WINDOW = torch.hann_window(16)


def _spectrum(size: int, hop: int) -> torch.Tensor:
    window = torch.hann_window(size)
    return torch.stft(floats(2, 64), size, hop, size, window, return_complex=True)


_SIGNALS = (
    call("stft.default", floats(2, 64), 16, 4, None, _WINDOW, False, None, True, depth=16),
    call("stft.default", floats(64), 16, None, None, None, True, True, True, depth=16),
    call("stft.default", floats(2, 64), 16, 5, 10, torch.hann_window(10), False, False, True,
         depth=16),
    call("istft.default", _spectrum(16, 4), 16, 4, 16, _WINDOW, depth=16),
    call("istft.default", _spectrum(16, 4)[0], 16, 4, 16, _WINDOW, True, True, None, 60, depth=16),
)  # fmt: skip

CALLS: tuple[Call, ...] = (
    *_RUNNING, *_BAGS, *_DISTANCES, *_LOSSES, *_SIGNS, *_SIGNALS,
)  # fmt: skip
