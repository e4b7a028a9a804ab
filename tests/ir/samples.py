"""Samples of every operator with an axis rule: the attribute variants that its rule tells apart.

Sizes differ from label to label and are at least 3 where possible, so that first, middle, last and
several positions are different drops and a mixed-up axis is a shape error.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regraft.ir.ops import OPS
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import DType
from regraft.soundness import Draw, Sample, bools, fixed, floats, ints

F32 = DType.F32

_BOOL_OPERATORS = ("logical_and", "logical_or", "logical_xor", "logical_not")
_INT_OPERATORS = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")

Samples = tuple[Sample, ...]


def _each(operands: tuple[Draw | None, ...], *variants: Mapping[str, object]) -> Samples:
    return tuple(Sample(operands, variant) for variant in variants)


def _recurrent(gates: int, *, more: int = 0) -> Samples:
    S, B, C, H = 3, 3, 4, 5
    states = (floats(1, B, H),) * (1 + more)
    both = (floats(2, B, H),) * (1 + more)
    return (
        Sample(
            (floats(S, B, C), floats(1, gates * H, C), floats(1, gates * H, H)),
            {"hidden_size": H, **_activations(gates)},
        ),
        Sample(
            (
                floats(S, B, C),
                floats(1, gates * H, C),
                floats(1, gates * H, H),
                floats(1, 2 * gates * H),
                fixed(np.array([3, 1, 2])),
                *states,
            ),
            {"hidden_size": H, "direction": "reverse", **_activations(gates)},
        ),
        Sample(
            (
                floats(S, B, C),
                floats(2, gates * H, C),
                floats(2, gates * H, H),
                None,
                None,
                *both,
            ),
            {"hidden_size": H, "direction": "bidirectional", **_activations(gates, 2)},
        ),
    )


def _activations(gates: int, directions: int = 1) -> dict[str, object]:
    names = {1: ("Tanh",), 3: ("Sigmoid", "Tanh"), 4: ("Sigmoid", "Tanh", "Tanh")}[gates]
    return {
        "activations": names * directions,
        "alphas": (0.0,) * len(names) * directions,
        "betas": (0.0,) * len(names) * directions,
    }


def _positive(*shape: int) -> Draw:
    """Features of linear attention, which are 0 or more."""
    return fixed(np.linspace(0.1, 1.0, int(np.prod(shape)), dtype=np.float32).reshape(shape))


_HYBRID = (floats(2, 6, 4, 7), floats(2, 2, 4, 7), floats(2, 2, 4, 3))
_WINDOW = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
_PADDED = {"strides": (2, 1), "dilations": (1, 1), "pads": (1, 0, 1, 1)}
_POOL = {"kernel": (2, 2), **_WINDOW}
_POOL_PADDED = {"kernel": (2, 2), **_PADDED}
_DECONV = {**_WINDOW, "output_padding": (0, 0)}

_REDUCED: Samples = _each(
    (floats(3, 4, 5),),
    {"axes": (1,)},
    {"axes": (-1, 0), "keepdims": False},
    {"axes": None},
    {"axes": (), "empty_is_none": True},
)


def _u8(*shape: int) -> Draw:
    return ints(*shape, low=0, high=255, dtype=DType.U8)


def _positive(*shape: int) -> Draw:
    return fixed(np.linspace(0.1, 0.9, int(np.prod(shape, dtype=int))).reshape(shape))


SAMPLES: dict[str, Samples] = {
    "prelu": (Sample((floats(3, 4), floats(3, 4))), Sample((floats(2, 3, 4), floats(3, 1)))),
    "is_nan": (Sample((fixed(np.array([[0.0, np.nan, 1.0], [np.nan, np.inf, 2.0]])),)),),
    "is_inf": _each(
        (fixed(np.array([[0.0, np.nan, np.inf], [-np.inf, np.inf, 2.0]])),), {}, {"negative": False}
    ),
    "equal": (Sample((ints(3, 4, high=2), ints(3, 4, high=2))),),
    "clip": (
        Sample((floats(3, 4),), {"min": -0.5, "max": 0.5}),
        Sample((floats(3, 4), fixed(np.asarray(-0.2)), fixed(np.asarray(0.7)))),
    ),
    "mod": (
        Sample((ints(3, 4, low=-9, high=9), ints(4, low=1, high=5))),
        Sample((floats(3, 4), floats(3, 1)), {"fmod": True}),
    ),
    "pow": (Sample((floats(3, 4), fixed(np.array([2.0, 3.0, 0.0, 1.0])))),),
    "cast": _each((floats(3, 4),), {"to": DType.I32}, {"to": DType.F16}, {"to": DType.BOOL}),
    "bitcast": (Sample((ints(3, 4, dtype=DType.I32),), {"to": F32}),),
    "stop_gradient": (Sample((floats(3, 4),)),),
    "cumsum": _each(
        (floats(3, 4, 5),), {"axis": 1}, {"axis": -1, "exclusive": True, "reverse": True}
    ),
    "cumprod": _each((floats(3, 4, 5),), {"axis": 1}, {"axis": 0, "reverse": True}),
    "eye_like": (Sample((floats(3, 4),)),),
    "trilu": _each((floats(3, 4, 4),), {"k": 0}, {"k": 1, "upper": False}),
    "where": (
        Sample((bools(3, 4), floats(3, 4), floats(3, 4))),
        Sample((bools(2, 1, 4), floats(3, 1), floats(2, 3, 4))),
    ),
    "bit_shift": _each(
        (ints(3, 4, dtype=DType.U8), ints(4, high=4, dtype=DType.U8)),
        {"left": True},
        {"left": False},
    ),
    "rnn": _recurrent(1),
    "gru": _recurrent(3),
    "lstm": (
        *_recurrent(4, more=1),
        Sample(
            (
                floats(3, 3, 4),
                floats(1, 20, 4),
                floats(1, 20, 5),
                None,
                None,
                None,
                None,
                floats(1, 15),
            ),
            {"hidden_size": 5, **_activations(4)},
        ),
    ),
    "matmul": (
        Sample((floats(3, 4), floats(4, 5))),
        Sample((floats(2, 3, 4, 5), floats(3, 5, 6))),
        Sample((floats(2, 1, 4, 5), floats(3, 5, 3))),
        Sample((floats(5), floats(3, 5, 4))),
        Sample((floats(3, 4, 5), floats(5))),
        Sample((floats(5), floats(5))),
    ),
    "gemm": (
        Sample((floats(3, 4), floats(4, 5))),
        Sample((floats(4, 3), floats(5, 4), floats(5)), {"trans_a": True, "trans_b": True}),
        Sample((floats(3, 4), floats(4, 5), floats(3, 5)), {"alpha": 0.5, "beta": 2.0}),
        Sample((floats(3, 4), floats(4, 5), floats(3, 1))),
        Sample((floats(3, 4), floats(4, 5), floats())),
    ),
    "det": (Sample((floats(4, 3, 3),)),),
    "einsum": (
        Sample((floats(3, 4), floats(4, 5)), {"equation": "ij,jk->ik"}),
        Sample((floats(3, 4, 5), floats(3, 5, 2)), {"equation": "bij,bjk"}),
        Sample((floats(3, 4, 5),), {"equation": "...ij->...ji"}),
        Sample((floats(2, 3, 4), floats(4, 3)), {"equation": "...ij,jk->...k"}),
        Sample((floats(4, 4),), {"equation": "ii->i"}),
        Sample((floats(4), floats(5), floats(5, 4)), {"equation": "i,j,ji->"}),
    ),
    **{name: _REDUCED for name in OPS if name.startswith("reduce_")},
    "softmax": _each((floats(3, 4, 5),), {"axis": -1}, {"axis": 1}),
    "log_softmax": _each((floats(3, 4, 5),), {"axis": -1}, {"axis": 0}),
    "hardmax": _each((floats(3, 4, 5),), {"axis": -1}, {"axis": 1}),
    "nll_loss": (
        *_each(
            (floats(5, 4), ints(5, high=4)),
            {"reduction": "none"},
            {"reduction": "sum"},
            {"reduction": "mean"},
        ),
        Sample(
            (floats(3, 4, 5), ints(3, 5, high=4), _positive(4)),
            {"reduction": "none", "ignore_index": 2},
        ),
    ),
    "conv": (
        Sample((floats(3, 4, 5, 5), floats(6, 4, 3, 3), floats(6)), _WINDOW),
        Sample((floats(2, 6, 5, 5), floats(8, 3, 2, 2), floats(8)), {**_PADDED, "groups": 2}),
        Sample((floats(2, 4, 5, 5), floats(4, 1, 2, 2)), {**_WINDOW, "groups": 4}),
        Sample((floats(2, 9, 4, 4), floats(12, 3, 1, 1)), {**_WINDOW, "groups": 3}),
        Sample((floats(2, 3, 5, 5), floats(9, 1, 2, 2), floats(9)), {**_WINDOW, "groups": 3}),
        Sample(
            (floats(2, 3, 7), floats(4, 3, 3)), {"strides": (1,), "dilations": (2,), "pads": (1, 2)}
        ),
    ),
    "conv_transpose": (
        Sample((floats(3, 4, 4, 4), floats(4, 5, 3, 3), floats(5)), _DECONV),
        Sample((floats(2, 6, 4, 4), floats(6, 4, 2, 2), floats(8)), {**_DECONV, "groups": 2}),
        Sample((floats(2, 9, 4, 4), floats(9, 2, 2, 2)), {**_DECONV, "groups": 3}),
        Sample((floats(2, 4, 4, 4), floats(4, 3, 2, 2), floats(12)), {**_DECONV, "groups": 4}),
    ),
    "causal_conv": (
        Sample((floats(3, 4, 6), floats(4, 1, 3), floats(4), floats(3, 4, 2))),
        Sample((floats(3, 4, 6), floats(4, 1, 3)), {"activation": "silu"}),
    ),
    "deform_conv": (
        Sample(
            (
                floats(3, 4, 5, 5),
                floats(6, 4, 2, 2),
                floats(3, 8, 4, 4),
                floats(6),
                floats(3, 4, 4, 4),
            ),
            _WINDOW,
        ),
        Sample(
            (floats(2, 6, 5, 5), floats(4, 3, 2, 2), floats(2, 8, 4, 4)), {**_WINDOW, "groups": 2}
        ),
        Sample(
            (floats(2, 4, 5, 5), floats(3, 4, 2, 2), floats(2, 16, 4, 4)),
            {**_WINDOW, "offset_groups": 2},
        ),
        Sample(
            (floats(2, 4, 5, 5), floats(6, 2, 2, 2), floats(2, 16, 4, 4), floats(6)),
            {**_WINDOW, "groups": 2, "offset_groups": 2},
        ),
    ),
    "grid_sample": _each(
        (floats(3, 4, 5, 5), floats(3, 4, 3, 2)),
        {},
        {"mode": "nearest", "padding": "border"},
        {"mode": "cubic", "padding": "reflection", "align_corners": True},
    ),
    "batch_norm": (
        Sample((floats(3, 4, 5, 5), floats(4), floats(4), floats(4), _positive(4))),
        Sample((floats(5, 4), floats(4), floats(4), floats(4), _positive(4))),
    ),
    "instance_norm": (Sample((floats(3, 4, 5, 5), floats(4), floats(4))),),
    "group_norm": (
        Sample((floats(3, 6, 4, 4), floats(6), floats(6)), {"groups": 3}),
        Sample((floats(3, 8, 5), floats(8), floats(8)), {"groups": 2}),
    ),
    "layer_norm": (
        Sample((floats(3, 4, 5), floats(5), floats(5))),
        Sample((floats(3, 4, 5), floats(4, 5)), {"axis": 1}, 3),
        Sample((floats(3, 4, 5), floats(4, 5), floats(1))),  # gains that broadcast
        Sample((floats(3, 4, 5), floats(3, 1, 5), floats(5)), {"axis": -2}),
    ),
    "rms_norm": (
        Sample((floats(3, 4, 5), floats(5))),
        Sample((floats(3, 4, 5), floats(4, 5)), {"axis": -2}, 2),
    ),
    "max_pool": _each((floats(3, 4, 5, 5),), _POOL, _POOL_PADDED),
    "max_pool_with_indices": (
        Sample((floats(3, 4, 5, 5),), _POOL),
        Sample((floats(3, 4, 5, 5),), {**_POOL, "column_major": True}),
    ),
    "average_pool": _each(
        (floats(3, 4, 5, 5),), _POOL, _POOL_PADDED, {**_POOL_PADDED, "count_include_pad": True}
    ),
    "lp_pool": _each((floats(3, 4, 5, 5),), _POOL, {**_POOL, "p": 1}),
    "global_max_pool": (Sample((floats(3, 4, 5, 5),)),),
    "global_average_pool": (Sample((floats(3, 4, 5, 5),)),),
    "global_lp_pool": _each((floats(3, 4, 5, 5),), {"p": 1}, {"p": 2}, {"p": 3}),
    "roi_align": _each(
        (
            floats(2, 4, 6, 6),
            fixed(np.array([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 5.0], [2.0, 0.0, 5.0, 3.0]])),
            fixed(np.array([0, 1, 1])),
        ),
        {"output_height": 2, "output_width": 3, "sampling_ratio": 2},
        {"output_height": 2, "output_width": 2, "mode": "max", "half_pixel": False},
    ),
    "max_roi_pool": (
        Sample(
            (
                floats(2, 4, 6, 6),
                fixed(
                    np.array(
                        [
                            [0.0, 0.0, 0.0, 4.0, 4.0],
                            [1.0, 1.0, 1.0, 3.0, 5.0],
                            [1.0, 2.0, 0.0, 5.0, 3.0],
                        ]
                    )
                ),
            ),
            {"output_height": 2, "output_width": 2},
        ),
    ),
    "resize": _each(
        (floats(3, 4, 5, 5),),
        {"scales": (2.0, 2.0), "axes": (2, 3)},
        {"sizes": (3, 7), "axes": (2, 3), "mode": "linear"},
        {"sizes": (8,), "axes": (3,), "mode": "cubic", "coordinates": "align_corners"},
    ),
    "local_response_norm": (Sample((floats(3, 6, 4),), {"size": 3, "alpha": 0.5}),),
    "lp_norm": _each((floats(3, 4, 5),), {"axis": -1}, {"axis": 1, "p": 1}),
    "mean_variance_norm": _each((floats(3, 4, 5, 5),), {}, {"axes": (1,)}),
    "col2im": (
        Sample(
            (floats(3, 12, 9),),
            {
                "image_shape": (4, 4),
                "block_shape": (2, 2),
                "strides": (1, 1),
                "dilations": (1, 1),
                "pads": (0, 0, 0, 0),
            },
        ),
        Sample(
            (floats(3, 12, 12),),
            {
                "image_shape": (4, 5),
                "block_shape": (1, 3),
                "strides": (1, 1),
                "dilations": (1, 1),
                "pads": (0, 0, 0, 0),
            },
        ),
    ),
    "quantize": (
        Sample((floats(3, 4), fixed(np.asarray(0.1)), _u8()), {"dtype": DType.U8}),
        Sample((floats(3, 4), _positive(4), _u8(4)), {"axis": 1, "dtype": DType.U8}),
        Sample((floats(3, 8), _positive(3, 2)), {"axis": 1, "block_size": 4, "dtype": DType.I8}),
    ),
    "dequantize": (
        Sample((_u8(3, 4), floats(), _u8())),
        Sample((_u8(3, 4), floats(3), _u8(3)), {"axis": 0}),
        Sample((_u8(3, 8), floats(3, 2)), {"axis": 1, "block_size": 4}),
    ),
    "dynamic_quantize": (Sample((floats(3, 4),)),),
    "lookup": (
        Sample((_u8(4, 3), floats(256), _positive(2, 3)), {"axis": 0, "block_size": 2}),
        Sample((_u8(3, 5), floats(256), _positive(3, 2)), {"axis": 1, "block_size": 3}),
    ),
    "matmul_integer": (
        Sample((_u8(3, 4), _u8(4, 5))),
        Sample((_u8(2, 3, 4), _u8(4, 5), _u8(), _u8())),
        Sample((_u8(3, 4), _u8(4, 5), _u8(3), _u8(5))),
    ),
    "qlinear_matmul": (
        Sample(
            (
                _u8(3, 4),
                _u8(4, 5),
                fixed(np.asarray(0.01)),
                _u8(),
                fixed(np.asarray(0.01)),
                _u8(),
                fixed(np.asarray(0.05)),
                _u8(),
            )
        ),
    ),
    "conv_integer": (
        Sample((_u8(2, 4, 5, 5), _u8(6, 4, 2, 2)), _WINDOW),
        Sample((_u8(2, 4, 5, 5), _u8(6, 2, 2, 2), _u8(), _u8()), {**_PADDED, "groups": 2}),
        Sample((_u8(2, 4, 5, 5), _u8(6, 4, 2, 2), _u8(), _u8(6)), _WINDOW),
    ),
    "qlinear_conv": (
        Sample(
            (
                _u8(2, 4, 5, 5),
                _u8(6, 4, 2, 2),
                ints(6, dtype=DType.I32),
                fixed(np.asarray(0.01)),
                _u8(),
                _positive(6),
                _u8(6),
                fixed(np.asarray(0.5)),
                _u8(),
            ),
            _WINDOW,
        ),
        Sample(
            (
                _u8(2, 4, 5, 5),
                _u8(6, 2, 2, 2),
                None,
                fixed(np.asarray(0.01)),
                _u8(),
                fixed(np.asarray(0.02)),
                _u8(),
                fixed(np.asarray(0.05)),
                _u8(),
            ),
            {**_PADDED, "groups": 2},
        ),
    ),
    "reshape": (
        Sample((floats(3, 4, 5),), {"shape": (3, 20)}),
        Sample((floats(3, 20),), {"shape": (3, 4, 5)}),
        Sample((floats(3, 4, 5),), {"shape": (12, 5)}),
        Sample((floats(3, 4, 6),), {"shape": (3, 8, 3)}),
        Sample((floats(3, 1, 4),), {"shape": (1, 3, 4, 1)}),
    ),
    "transpose": _each((floats(3, 4, 5),), {}, {"perm": (1, 2, 0)}),
    "squeeze": (
        *_each((floats(1, 3, 1, 4),), {}, {"axes": (-2, 0)}),
        Sample((floats(1, 3, 5, 4),), {"axes": (0,)}),
    ),
    "unsqueeze": _each((floats(3, 4),), {"axes": (0,)}, {"axes": (-1, 1)}),
    "slice": _each(
        (floats(4, 5, 6),),
        {"starts": (1,), "ends": (4,), "axes": (1,), "steps": (1,)},
        {"starts": (4, 0), "ends": (0, 6), "axes": (1, 2), "steps": (-1, 2)},
    ),
    "split": (
        Sample((floats(3, 6, 4),), {"axis": 1, "sizes": (2, 4)}, 2),
        Sample((floats(6, 4),), {"axis": 0, "sizes": (2, 2, 2)}, 3),
    ),
    "concat": (
        Sample((floats(3, 2, 4), floats(3, 5, 4)), {"axis": 1}),
        Sample((floats(3, 4), floats(3, 4), floats(1, 4)), {"axis": 0}),
    ),
    "expand": _each((floats(3, 1),), {"shape": (3, 4)}, {"shape": (2, 3, 4)}, {"shape": (1, 1)}),
    "tile": _each((floats(3, 4),), {"repeats": (1, 3)}, {"repeats": (2, 1)}),
    "pad": _each(
        (floats(3, 4, 5),),
        {"pads": (0, 1, 0, 0, 2, 0)},
        {"pads": (1, 2), "axes": (2,), "mode": "reflect"},
        {"pads": (0, 0, 1, 0, 0, 1), "mode": "edge"},
    ),
    "depth_to_space": _each(
        (floats(3, 8, 2, 3),), {"block_size": 2}, {"block_size": 2, "mode": "CRD"}
    ),
    "space_to_depth": (Sample((floats(3, 2, 4, 6),), {"block_size": 2}),),
    "reverse_sequence": (
        Sample((floats(4, 3, 5), fixed(np.array([4, 1, 3])))),
        Sample((floats(3, 4, 5), fixed(np.array([2, 4, 3]))), {"time_axis": 1, "batch_axis": 0}),
    ),
    "center_crop_pad": _each((floats(3, 4, 5),), {"shape": (2, 7), "axes": (1, 2)}),
    "gather": (
        Sample((floats(5, 4), ints(3, high=5))),
        Sample((floats(3, 5, 4), ints(2, 3, high=5)), {"axis": 1}),
        Sample((floats(3, 5), fixed(np.asarray(2))), {"axis": -1}),
    ),
    "gather_elements": (
        Sample((floats(3, 5), ints(3, 4, high=5)), {"axis": 1}),
        Sample((floats(5, 4, 3), ints(2, 4, 3, high=5))),
    ),
    "gather_nd": (
        Sample((floats(3, 4, 5), fixed(np.array([[0, 1], [2, 3], [1, 0]])))),
        Sample((floats(3, 4, 5), fixed(np.array([[1], [3], [0]]))), {"batch_dims": 1}),
        Sample((floats(4, 5, 3), fixed(np.array([[1], [3], [0]])))),
    ),
    "scatter_elements": (
        Sample((floats(4, 5), fixed(np.array([[0, 1, 2, 3, 0], [3, 2, 1, 0, 2]])), floats(2, 5))),
        Sample(
            (floats(4, 5), fixed(np.array([[0, 3], [1, 1], [4, 0], [2, 3]])), floats(4, 2)),
            {"axis": 1, "reduction": "add"},
        ),
    ),
    "scatter_nd": (
        Sample((floats(5, 4, 3), fixed(np.array([[0], [3]])), floats(2, 4, 3))),
        Sample(
            (floats(4, 5, 3), fixed(np.array([[0, 1], [3, 2]])), floats(2, 3)), {"reduction": "add"}
        ),
    ),
    "tensor_scatter": (
        Sample((floats(3, 4, 6, 5), floats(3, 4, 2, 5), fixed(np.array([1, 0, 3])))),
        Sample((floats(3, 6, 5), floats(3, 2, 5)), {"axis": 1}),
    ),
    "top_k": _each((floats(3, 4, 6),), {"k": 2}, {"k": 3, "axis": 1, "largest": False}),
    "arg_max": _each((floats(3, 4, 5),), {"axis": 1}, {"axis": -1, "keepdims": False}),
    "arg_min": _each((floats(3, 4, 5),), {"axis": 0}, {"axis": 2, "select_last_index": True}),
    "one_hot": _each(
        (ints(3, 4, high=5), None, fixed(np.array([0.0, 1.0]))),
        {"depth": 5},
        {"depth": 5, "axis": 0},
        {"depth": 5, "axis": 1},
    ),
    "compress": (
        Sample((floats(3, 4), fixed(np.array([True, False, True]))), {"axis": 0}),
        Sample((floats(3, 4), fixed(np.array([True, False, True, True]))), {"axis": 1}),
    ),
    "attention": (
        Sample((floats(2, 3, 4, 5), floats(2, 3, 6, 5), floats(2, 3, 6, 4)), {"scale": 0.5}),
        Sample(
            (
                floats(2, 6, 4, 5),
                floats(2, 2, 6, 5),
                floats(2, 2, 6, 3),
                floats(2, 6, 4, 6),
                fixed(np.array([6, 4])),
                floats(6),
            ),
            {"scale": 0.5, "kv_groups": 3},
        ),
        Sample(
            (floats(3, 4, 5, 4), floats(3, 2, 5, 4), floats(3, 2, 5, 4), floats(1, 1, 5, 5)),
            {"scale": 0.3, "kv_groups": 2, "causal_offset": 0, "softcap": 2.0},
        ),
        Sample(
            (floats(3, 4, 5, 4), floats(3, 4, 5, 4), floats(3, 4, 5, 4), bools(5, 5)),
            {"scale": 0.3, "window": (2, 0), "causal_offset": 0},
        ),
    ),
    "rotary_embedding": (
        Sample((floats(2, 3, 4, 8), floats(4, 4), floats(4, 4))),
        Sample((floats(2, 3, 4, 8), floats(4, 4), floats(4, 4)), {"interleaved": True}),
        Sample((floats(2, 3, 4, 8), floats(2, 4, 4), floats(2, 4, 4))),
        Sample((floats(2, 3, 4, 8), floats(4, 2), floats(4, 2)), {"rotary_size": 4}),
        Sample((floats(2, 3, 4, 8), floats(9, 4), floats(9, 4), ints(2, 4, high=9))),
    ),
    "linear_attention": (
        Sample(
            (floats(2, 3, 4, 5), floats(2, 3, 4, 5), floats(2, 3, 4, 3), floats(2, 3, 5, 3)),
            {"rule": "linear", "scale": 0.5},
        ),
        Sample(
            (
                floats(2, 6, 4, 5),
                floats(2, 2, 4, 5),
                floats(2, 2, 4, 3),
                floats(2, 2, 5, 3),
                floats(2, 2, 4, 5),
            ),
            {"rule": "gated", "scale": 0.5, "kv_groups": 3},
        ),
        Sample(
            (
                floats(2, 3, 4, 5),
                floats(2, 3, 4, 5),
                floats(2, 3, 4, 3),
                floats(2, 3, 5, 3),
                floats(2, 3, 4, 1),
                floats(2, 3, 4, 1),
            ),
            {"rule": "gated_delta", "scale": 0.5},
        ),
    ),
    "hybrid_attention": _each(
        (*_HYBRID, _positive(2, 6, 4, 5), _positive(2, 2, 4, 5)),
        *({"scale": 0.5, "kv_groups": 3, "window": 3, "merge": each} for each in ("lse", "share")),
        {"scale": 0.5, "kv_groups": 3, "window": 5, "merge": "lolcats", "branches": "linear"},
    ),
    "moe": (
        Sample(
            (
                floats(3, 4),
                floats(3, 5),
                floats(5, 6, 4),
                floats(5, 3, 6),
                floats(5, 6, 4),
                floats(5, 6),
                floats(5, 3),
                floats(5, 6),
                floats(5),
            ),
            {"top_k": 2, "renormalize": True},
        ),
        Sample(
            (floats(4, 4), floats(4, 3), floats(3, 5, 4), floats(3, 2, 5)),
            {"top_k": 1, "select": "expert_choice", "capacity": 1.0},
        ),
        Sample(
            (floats(4, 4), floats(4, 3), floats(3, 5, 4), floats(3, 2, 5)),
            {"top_k": 2, "capacity": 0.5, "widths": (5, 5, 5)},
        ),
        Sample(
            (floats(2, 3, 4), floats(2, 3, 5), floats(5, 6, 4), floats(5, 7, 6)),
            {"top_k": 1, "scoring": "sigmoid", "activation": "relu"},
        ),
        Sample(
            (floats(3, 4), floats(3, 5), floats(5, 6, 4), floats(5, 3, 6), floats(5, 6, 4)),
            {"top_k": 2, "norm_epsilon": 0.1, "limit": 0.5, "bounds": "soft"},
        ),
    ),
    "dft": (Sample((floats(3, 6, 2),), {"axis": 1}),),
    "stft": (Sample((floats(3, 12, 1), None, floats(4)), {"frame_step": 2, "frame_length": 4}),),
}


def samples_of(spec: OpSpec) -> Samples:
    """Returns the samples of an operator; elementwise ones without an entry get generic ones."""
    given = SAMPLES.get(spec.name)
    if given is not None:
        return given
    if Trait.ELEMENTWISE not in spec.traits:
        return ()
    draw = (
        bools if spec.name in _BOOL_OPERATORS
        else ints if spec.name in _INT_OPERATORS
        else floats
    )  # fmt: skip
    arity = len(spec.operands)
    same = Sample(tuple(draw(3, 4) for _ in range(arity)))
    if arity == 1:
        return (same,)
    shapes = ((2, 1, 4), (3, 1), (2, 3, 4))[:arity]
    return same, Sample(tuple(draw(*shape) for shape in shapes))
