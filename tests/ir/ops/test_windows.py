"""Window geometry: symbolic sizes agree with every binding, errors say what does not fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from regraft.ir.dims import Dim, bind
from regraft.ir.errors import TypeInferenceError
from regraft.ir.flops import flops_of
from regraft.ir.graph import Graph, Node
from regraft.ir.ops.conv import conv, conv_transpose, convolve
from regraft.ir.ops.windows import Windows, pad_spatial, padding, static_pads, window_counts
from regraft.ir.types import DType, TensorType
from regraft.soundness import make_node

STRIDE_1 = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
N = Dim.of("N")


def counted(size: int, windows: Windows) -> int:
    """Counts windows one by one: those that fit, or with ceil_mode those that start inside."""
    (kernel,), (stride,), (dilation,) = windows.kernel, windows.strides, windows.dilations
    begin, end = windows.pads
    span = (int(str(kernel)) - 1) * dilation + 1
    starts = range(0, size + begin + end, stride)
    fitting = [start for start in starts if start + span <= size + begin + end]
    if not windows.ceil_mode:
        return len(fitting)
    # one more window when the last one leaves elements over, and it starts before the end padding
    left = fitting[-1] + span < size + begin + end if fitting else False
    extra = fitting[-1] + stride < size + begin if fitting else False
    return len(fitting) + (left and extra)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_window_counts_of_symbolic_sizes_bind_to_the_counted_windows(ceil_mode: bool) -> None:
    grid = itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (0, 1), (0, 1))
    for kernel, stride, dilation, begin, end in grid:
        if max(begin, end) >= kernel:
            continue
        windows = Windows((kernel,), (stride,), (dilation,), (begin, end), ceil_mode=ceil_mode)
        (symbolic,) = window_counts(windows, (N,))
        for size in range(dilation * kernel, 14):
            (static,) = window_counts(windows, (size,))
            assert static == bind(symbolic, {"N": size}), windows
            if ceil_mode and fits_exactly_at_the_edge(size, windows):
                continue
            assert static == counted(size, windows), (windows, size)


def fits_exactly_at_the_edge(size: int, windows: Windows) -> bool:
    """Returns whether the last fitting window itself starts in the end padding (it is dropped)."""
    (stride,), (begin, _) = windows.strides, windows.pads
    plain = Windows(windows.kernel, windows.strides, windows.dilations, windows.pads)
    (count,) = window_counts(plain, (size,))
    return isinstance(count, int) and (count - 1) * stride >= size + begin


@pytest.mark.parametrize("mode", ["same_upper", "same_lower"])
def test_same_padding_gives_one_window_per_stride(mode: str) -> None:
    for kernel, stride, dilation in itertools.product((1, 2, 3), (1, 2, 3), (1, 2)):
        windows = Windows((kernel,), (stride,), (dilation,), (0, 0), mode)
        for size in range(6, 13):
            (begin,), (end,) = padding(windows, (size,))
            assert isinstance(begin, int)
            assert isinstance(end, int)
            assert abs(begin - end) <= 1
            assert (begin <= end) if mode == "same_upper" else (begin >= end)
            explicit = Windows((kernel,), (stride,), (dilation,), (begin, end))
            assert window_counts(explicit, (size,)) == window_counts(windows, (size,))
            assert window_counts(windows, (size,)) == (-(-size // stride),)


def test_same_padding_is_explicit_for_symbolic_sizes_where_the_stride_is_one() -> None:
    assert static_pads(Windows((4,), (1,), (1,), (0, 0), "same_upper"), (N,)) == (1, 2)
    assert static_pads(Windows((4,), (2,), (1,), (0, 0), "same_upper"), (N,)) is None


def test_pad_spatial_adds_and_cuts() -> None:
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    padded = pad_spatial(x, (1, -1), (0, 2), value=-1)
    assert padded.tolist() == [
        [[[-1, -1, -1, -1, -1], [1, 2, 3, -1, -1], [5, 6, 7, -1, -1], [9, 10, 11, -1, -1]]]
    ]


def test_conv_states_the_channels_that_do_not_fit() -> None:
    with pytest.raises(
        TypeInferenceError, match=r"conv: weight takes 3 input channels \(groups=1\), x has 4"
    ):
        make_node(conv, [np.zeros((1, 4, 5, 5)), np.zeros((2, 3, 1, 1))], STRIDE_1)


def test_conv_states_ranks_that_differ() -> None:
    with pytest.raises(TypeInferenceError, match="x has rank 3, weight has rank 4"):
        make_node(conv, [np.zeros((1, 4, 5)), np.zeros((2, 4, 1, 1))], STRIDE_1)


def inferred(shape: tuple[int | Dim, ...] | None, weight: tuple[int, ...] | None) -> Node:
    graph = Graph()
    operands = [graph.add_input(None, TensorType(DType.F32, s)) for s in (shape, weight)]
    return graph.create(conv, operands, STRIDE_1)


def test_conv_of_unknown_operands_keeps_what_is_known() -> None:
    assert inferred(None, (2, 3, 1, 1)).output.type == TensorType(DType.F32, None)
    shape = inferred((N, 3, 5, 5), None).output.shape
    assert shape is not None
    assert shape[0] is N
    assert len(shape) == 4
    assert all(isinstance(dim, Dim) for dim in shape)


def test_conv_flops_count_two_per_multiply() -> None:
    x, weight = np.zeros((2, 6, 9, 9)), np.zeros((8, 3, 3, 3))
    node = make_node(conv, [x, weight], {**STRIDE_1, "groups": 2})
    assert flops_of(node) == 2 * 2 * 8 * 7 * 7 * 3 * 3 * 3


def test_conv_transpose_flops_count_every_input_element_times_its_taps() -> None:
    x, weight = np.zeros((2, 6, 4, 4)), np.zeros((6, 5, 3, 3))
    node = make_node(conv_transpose, [x, weight], {**STRIDE_1, "output_padding": (0, 0)})
    assert flops_of(node) == 2 * (2 * 6 * 4 * 4) * 5 * 3 * 3


def test_convolve_in_pieces_equals_convolve_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 4, 9, 7)), rng.standard_normal((6, 2, 3, 3))
    windows = Windows((3, 3), (2, 1), (1, 1), (1, 1, 1, 1))
    whole = convolve(x, weight, windows, 2)
    monkeypatch.setattr("regraft.ir.ops.conv._CHUNK_BYTES", 1)  # one row of windows at a time
    np.testing.assert_allclose(convolve(x, weight, windows, 2), whole, rtol=1e-14, atol=1e-14)
    assert np.abs(whole).max() > 1
