"""Samples of operators for PyTorch: those of the axis rules, and variants of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType
from regraft.soundness import Draw, Sample, bools, fixed, floats, ints
from tests.ir import samples as rules

Samples = tuple[Sample, ...]


def _each(operands: tuple[Draw | None, ...], *variants: Mapping[str, object]) -> Samples:
    return tuple(Sample(operands, variant) for variant in variants)


def _activations(names: tuple[str, ...], directions: int = 1) -> dict[str, object]:
    every = names * directions
    return {"activations": every, "alphas": (0.2,) * len(every), "betas": (0.5,) * len(every)}


def _recurrent(gates: int, usual: tuple[str, ...], other: tuple[str, ...]) -> Samples:
    S, B, C, H = 4, 3, 2, 5
    wide = (floats(S, B, C), floats(1, gates * H, C), floats(1, gates * H, H))
    both = (floats(S, B, C), floats(2, gates * H, C), floats(2, gates * H, H))
    bias, lengths = floats(2, 2 * gates * H), fixed(np.array([4, 0, 2]))
    return (
        Sample(wide, {"hidden_size": H, "direction": "reverse", **_activations(usual)}),
        Sample(wide, {"hidden_size": H, "clip": 0.3, **_activations(other)}),
        Sample(
            (*both, bias, lengths, floats(2, B, H)),
            {"hidden_size": H, "direction": "bidirectional", **_activations(other, 2)},
        ),
    )


_HEADS = (floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6))
_GROUPED = {"scale": 0.3, "kv_groups": 2}
_LINEAR = (floats(2, 4, 5, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6))
_EMPTY_ROW = fixed(np.array([[True, True, False, True, True], [False] * 5, [True] * 5]))
_HIDDEN_ROW = fixed(np.where([[True] * 5, [False] * 5, [True, False] * 2 + [True]], 0.5, -np.inf))
_POOL = {"kernel": (3, 2), "strides": (2, 1), "dilations": (1, 1)}
_DECONV = {"strides": (2, 3), "dilations": (1, 2), "output_padding": (0, 0)}
_RESIZED = (floats(2, 3, 5, 7), None, None)
_MOE = (floats(2, 3, 4), floats(2, 3, 5), floats(5, 6, 4), floats(5, 7, 6), floats(5, 6, 4))

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn",
)  # fmt: skip
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _resize_variants() -> list[Mapping[str, object]]:
    variants: list[Mapping[str, object]] = []
    for coordinates in COORDINATES:
        for size in ({"sizes": (8, 4)}, {"scales": (2.0, 3.0)}, {"scales": (0.6, 1.7)}):
            common = {"axes": (2, 3), "coordinates": coordinates, **size}
            variants += [{**common, "nearest": nearest} for nearest in _NEAREST]
            variants += [{**common, "mode": mode} for mode in ("linear", "cubic")]
            variants.append({**common, "mode": "cubic", "exclude_outside": True, "cubic_a": -0.5})
            variants.append({**common, "mode": "linear", "antialias": True})
    return variants


SAMPLES: Mapping[str, Samples] = {
    "add": (Sample((ints(3, 4, dtype=DType.U32), ints(4, dtype=DType.U32))),),
    "sub": (Sample((ints(3, 4, dtype=DType.U8), ints(4, dtype=DType.U8))),),
    "div": (
        Sample((ints(3, 4, low=-9, high=9), ints(4, low=1, high=5))),
        Sample((ints(3, 4, low=-9, high=9, dtype=DType.I32), fixed(np.array([-2], np.int32)))),
    ),
    "mod": (
        Sample((ints(3, 4, low=-9, high=9), fixed(np.array([-4, 3, 5, -2])))),
        Sample((ints(3, 4, low=-9, high=9), fixed(np.array([-4, 3, 5, -2]))), {"fmod": True}),
        Sample((floats(3, 4), floats(4))),
    ),
    "pow": (
        Sample((ints(3, 4, low=1), fixed(np.array([0.5, 2.0, 1.5, 1.0], np.float32)))),
        Sample((ints(3, 4, dtype=DType.I32), ints(4, high=4))),
        Sample((floats(3, 4), ints(4, high=4))),
    ),
    "reduce_sum": (Sample((ints(3, 4, dtype=DType.I32), None), {"axes": (0,)}),),
    "reduce_mean": (Sample((ints(3, 4, low=-9, high=9), None), {"axes": (1,)}),),
    "reduce_prod": (Sample((floats(3, 4, 2), None), {"axes": (0, 2), "keepdims": False}),),
    "cumsum": _each(
        (ints(3, 4, dtype=DType.I32),),
        {"axis": 0, "exclusive": True},
        {"axis": 1, "reverse": True},
    ),
    "top_k": _each(
        (ints(4, 9, high=3),),
        {"k": 5, "axis": 1},
        {"k": 3, "axis": 0, "largest": False},
    ),
    "gather": (
        *_each((floats(3, 4, 5), fixed(np.array([[-1, 0], [2, -3]]))), {"axis": 0}, {"axis": 1}),
        Sample((floats(3, 4), fixed(np.array(-1))), {"axis": 1}),
    ),
    "gather_elements": (
        Sample((floats(3, 4), fixed(np.array([[-1, 0, 1], [2, -3, 0]]))), {"axis": 1}),
    ),
    "gather_nd": (
        Sample((floats(2, 3, 4), fixed(np.array([[[-1]], [[0]]]))), {"batch_dims": 1}),
        Sample((floats(2, 3, 4), fixed(np.array([1, -2])))),
    ),
    "scatter_elements": (
        *_each(
            (floats(3, 4), fixed(np.array([[-1, 0], [2, -2]])), floats(2, 2)),
            *({"axis": 1, "reduction": how} for how in ("add", "mul", "min", "max")),
        ),
        Sample((floats(3, 4), fixed(np.array([[-1, 0], [2, -3]])), floats(2, 2)), {"axis": 1}),
    ),
    "scatter_nd": (
        *_each(
            (floats(4, 3), fixed(np.array([[-1], [0], [-1]])), floats(3, 3)),
            *({"reduction": how} for how in ("add", "mul", "min", "max")),
        ),
        Sample((floats(4, 3), fixed(np.array([[-1], [0]])), floats(2, 3))),
    ),
    "one_hot": (
        Sample((fixed(np.array([[0, -1], [7, 2]])), None, floats(2)), {"depth": 4, "axis": 1}),
    ),
    "slice": _each(
        (floats(5, 6),),
        {"starts": (-1, 4), "ends": (-9, 0), "axes": (0, 1), "steps": (-2, -1)},
        {"starts": (1, -3), "ends": (100, -1), "axes": (-2, -1), "steps": (2, 1)},
    ),
    "pad": _each(
        (floats(2, 3, 4, 5),),
        *(
            {"pads": (0, 0, 1, 2, 0, 0, 2, 1), "mode": mode}
            for mode in ("constant", "reflect", "edge", "wrap")
        ),
        *(
            {"pads": (2, 1), "axes": (3,), "mode": mode}
            for mode in ("constant", "reflect", "edge", "wrap")
        ),
        *(
            {"pads": (1, -1, 1, -1), "axes": (1, 3), "mode": mode}
            for mode in ("constant", "reflect", "edge", "wrap")
        ),
    ),
    "conv": _each(
        (floats(2, 4, 7, 6), floats(6, 2, 3, 2), floats(6)),
        {"strides": (2, 1), "dilations": (1, 2), "pads": (1, 0, 2, 1), "groups": 2},
        {"strides": (2, 2), "dilations": (1, 1), "pads": (), "auto_pad": "same_lower", "groups": 2},
        {"strides": (1, 1), "dilations": (1, 1), "pads": (-1, 1, 0, 1), "groups": 2},
    ),
    "conv_transpose": _each(
        (floats(2, 4, 5, 4), floats(4, 3, 3, 2), floats(6)),
        {**_DECONV, "pads": (1, 0, 1, 0), "groups": 2},
        {**_DECONV, "pads": (1, 0, 0, 2), "groups": 2},
        {**_DECONV, "pads": (0,) * 4, "groups": 2, "output_padding": (3, 1)},
        {**_DECONV, "pads": (0,) * 4, "groups": 2, "output_shape": (12, 9)},
        {
            **_DECONV,
            "pads": (0,) * 4,
            "groups": 2,
            "output_shape": (8, 14),
            "auto_pad": "same_upper",
        },
    ),
    "max_pool": (
        *_each(
            (floats(2, 3, 7, 6),),
            *(
                {**_POOL, "pads": pads, "ceil_mode": ceil}
                for pads in ((1, 1, 1, 1), (2, 0, 1, 1), (0, 1, 2, 0))
                for ceil in (False, True)
            ),
            {**_POOL, "pads": (), "auto_pad": "same_upper"},
            {**_POOL, "dilations": (2, 3), "pads": (0, 0, 1, 1)},
        ),
        Sample((ints(2, 3, 7, 6, low=-9, dtype=DType.I8),), {**_POOL, "pads": (1, 0, 0, 1)}),
    ),
    "max_pool_with_indices": _each(
        (floats(2, 3, 7, 6),),
        {**_POOL, "pads": (1, 0, 2, 1), "ceil_mode": True},
        {**_POOL, "pads": (0, 0, 0, 0), "column_major": True},
    ),
    "average_pool": _each(
        (floats(2, 3, 7, 6),),
        *(
            {**_POOL, "pads": pads, "ceil_mode": ceil, "count_include_pad": counted}
            for pads in ((1, 1, 1, 1), (2, 0, 1, 1))
            for ceil in (False, True)
            for counted in (False, True)
        ),
        {**_POOL, "dilations": (2, 3), "pads": (0, 0, 1, 1)},
        {**_POOL, "pads": (), "auto_pad": "same_lower"},
    ),
    "lp_pool": _each(
        (floats(2, 3, 7, 6),),
        {**_POOL, "pads": (1, 0, 1, 1), "ceil_mode": True},
        {**_POOL, "pads": (0, 0, 0, 0), "p": 3},
    ),
    "local_response_norm": _each((floats(2, 6, 3),), {"size": 3}, {"size": 4}, {"size": 2}),
    "resize": _each(_RESIZED, *_resize_variants()),
    "rnn": _recurrent(1, ("Tanh",), ("HardSigmoid",)),
    "gru": tuple(
        Sample(sample.operands, {**sample.attrs, "linear_before_reset": linear})
        for sample in _recurrent(3, ("Sigmoid", "Tanh"), ("HardSigmoid", "Elu"))
        for linear in (False, True)
    ),
    "lstm": (
        *_recurrent(4, ("Sigmoid", "Tanh", "Tanh"), ("HardSigmoid", "ScaledTanh", "Softsign")),
        *(
            Sample(sample.operands, {**sample.attrs, "input_forget": True})
            for sample in _recurrent(4, ("Sigmoid", "Tanh", "Tanh"), ("LeakyRelu", "Relu", "Tanh"))
        ),
    ),
    "attention": (
        *_each(
            _HEADS,
            _GROUPED,
            {**_GROUPED, "causal_offset": 0},
            {**_GROUPED, "causal_offset": 2},
            {**_GROUPED, "causal_offset": -2},
            {**_GROUPED, "causal_offset": 1, "window": (2, 1)},
            {**_GROUPED, "softcap": 0.7},
            {**_GROUPED, "softcap": 0.7, "causal_offset": -1},
            {**_GROUPED, "softmax_dtype": DType.F64},
        ),
        *_each((*_HEADS, _EMPTY_ROW), _GROUPED, {**_GROUPED, "causal_offset": 1}),
        *_each(
            (*_HEADS, bools(2, 1, 3, 5), ints(2, low=1, high=5)),
            {**_GROUPED, "softcap": 2.0},
            _GROUPED,
        ),
        *_each(
            (*_HEADS, _HIDDEN_ROW),
            {**_GROUPED, "softcap": 1.5, "mask_before_softcap": True},
            {**_GROUPED, "softcap": 1.5},
        ),
        *_each((*_HEADS, floats(4, 3, 5)), _GROUPED),
        *_each((*_HEADS, floats(5)), {**_GROUPED, "causal_offset": 0}),
        *_each((*_HEADS, None, None, floats(4)), _GROUPED, {**_GROUPED, "causal_offset": -2}),
        *_each((*_HEADS, None, None, None, fixed(np.array([0, 2]))), _GROUPED),
        *_each(
            (*_HEADS, _EMPTY_ROW),
            *(
                {**_GROUPED, "normalizer": name, "normalizer_parameters": parameters}
                for name, parameters in (
                    ("two_pass", ()),
                    ("clipped", (-0.03, 1.01, 0.2)),
                    ("stablemax", ()),
                    ("softplus", ()),
                    ("softplus", (3.0,)),
                    ("entmax", (1.5,)),
                    ("entmax", (2.0,)),
                    ("entmax", (1.2,)),
                    ("top_k", (2.0,)),
                )
            ),
            {**_GROUPED, "causal_offset": 1, "modifier": "selective"},
            {
                **_GROUPED,
                "causal_offset": 0,
                "modifier": "selective",
                "modifier_parameters": (0.5,),
                "normalizer": "stablemax",
            },
        ),
        *_each(
            (*_HEADS, _HIDDEN_ROW),
            {**_GROUPED, "softcap": 1.5, "mask_before_softcap": True, "normalizer": "stablemax"},
            {**_GROUPED, "softcap": 1.5, "normalizer": "softplus", "softmax_dtype": DType.F64},
        ),
        *_each(
            (*_HEADS, None, None, None, None, fixed(np.array([1.1, 1.4, 1.6, 1.9], np.float32))),
            {**_GROUPED, "causal_offset": 2, "normalizer": "entmax"},
        ),
        *_each(
            (*_HEADS, None, None, None, None, None, floats(2, 4, 3)),
            {**_GROUPED, "causal_offset": 2, "modifier": "threshold"},
        ),
        *_each(
            (*_HEADS, None, None, floats(4)),
            {**_GROUPED, "normalizer": "clipped", "normalizer_parameters": (-0.1,)},
            {**_GROUPED, "normalizer": "stablemax", "causal_offset": -1},
            {**_GROUPED, "normalizer": "softplus", "normalizer_parameters": (2.0,)},
            {**_GROUPED, "normalizer": "entmax"},
        ),
    ),
    "linear_attention": (
        *_each(
            _LINEAR,
            *(
                {**_GROUPED, "rule": "linear", "feature_map": feature, "normalizer": "sum"}
                for feature in ("elu", "exp", "softmax", "hedgehog", "taylor")
            ),
            {**_GROUPED, "rule": "linear", "chunk_size": 2},
            {**_GROUPED, "rule": "linear", "causal": False},
            {**_GROUPED, "rule": "linear", "causal": False, "normalizer": "mean"},
            {
                **_GROUPED,
                "rule": "linear",
                "causal": False,
                "feature_map": "elu",
                "normalizer": "sum",
                "epsilon": 0.5,
            },
        ),
        *(
            Sample(
                (*_LINEAR, floats(2, 2, 8, 6), floats(*decay), *rates),
                {**_GROUPED, "rule": "gated_delta" if rates else "gated", "chunk_size": size},
            )
            for decay in ((2, 2, 5, 8), (2, 2, 5, 1), (1, 2, 1, 1))
            for rates in ((), (floats(2, 2, 5, 1),))
            for size in (0, 1, 2)
        ),
        *_each(
            (*_LINEAR, None, None, floats(2, 1, 5, 1)),
            {**_GROUPED, "rule": "delta"},
            {**_GROUPED, "rule": "delta", "chunk_size": 3},
        ),
    ),
    "moe": (
        *_each(
            _MOE,
            *(
                {"top_k": 2, "scoring": scoring, "renormalize": again, "activation": activation}
                for scoring, again, activation in (
                    ("softmax", False, "silu"),
                    ("softmax", True, "relu"),
                    ("topk_softmax", False, "gelu"),
                    ("sigmoid", True, "gelu_tanh"),
                    ("softmax", True, "relu2"),
                    ("softmax", True, "quick_gelu"),
                    ("sigmoid", False, "hard_swish"),
                    ("topk_softmax", False, "sigmoid"),
                )
            ),
            {"top_k": 5, "routed_scale": 2.5, "activation": "identity"},
            {"top_k": 5, "scoring": "given", "limit": 0.7, "up_offset": 1.0},
            {"top_k": 3, "limit": 0.7, "bounds": "clip_after", "gate_limit": 0.4},
            {"top_k": 3, "limit": 0.7, "bounds": "soft", "activation": "quick_gelu"},
            {"top_k": 3, "norm_epsilon": 0.1},
            {"top_k": 2, "scoring": "sigmoid", "weigh_input": True},
            {"top_k": 5, "select": "top_p", "threshold": 0.6, "renormalize": True},
            {"top_k": 3, "select": "threshold", "threshold": 0.4, "scoring": "sigmoid"},
            {"top_k": 2, "capacity": 0.8},
            {"top_k": 2, "scoring": "topk_softmax", "capacity": 0.5, "routed_scale": 2.0},
            {"top_k": 2, "select": "expert_choice", "capacity": 1.0, "renormalize": True},
        ),
        Sample(
            (*_MOE, floats(5, 6), floats(5, 7), floats(5, 6), floats(5)),
            {"top_k": 2, "scoring": "sigmoid"},
        ),
        *_each(
            (*_MOE, floats(5, 6), floats(5, 7), floats(5, 6), floats(5), floats(5)),
            {"top_k": 2, "scoring": "sigmoid"},
            {"top_k": 2, "select": "expert_choice", "capacity": 1.5},
        ),
    ),
    "range": (
        Sample((None, None, None), {"start": 2, "limit": 9, "delta": 3}),
        Sample((fixed(np.array(3)), fixed(np.array(-9)), fixed(np.array(-2)))),
        Sample(
            tuple(fixed(np.array(value, np.float32)) for value in (0.5, 3.1, 0.3)),
            {},
        ),
    ),
    "constant_of_shape": (Sample((None,), {"shape": (2, 3), "value": np.array([0.5])}),),
    "random_normal": (Sample((), {"shape": (2, 3), "seed": 4.0}), Sample((), {"shape": (2,)})),
    "random_uniform": (Sample((), {"shape": (2, 3), "low": -1.0}),),
    "multinomial": (Sample((floats(3, 5),), {"sample_size": 4}),),
    "dft": _each(
        (floats(3, 6, 1),),
        {"axis": 1},
        {"axis": 0, "length": 5},
        {"axis": 1, "onesided": True},
        {"axis": 1, "inverse": True},
    )
    + _each((floats(3, 4, 2),), {"axis": 1, "inverse": True, "onesided": True, "length": 6}),
    "hann_window": _each((None,), {"size": 1}, {"size": 6, "periodic": False}),
    "rms_norm": (Sample((floats(3, 4, 5), floats(4, 1)), {"axis": 1}, 2),),
    "layer_norm": (
        Sample((floats(3, 4, 5), floats(5), floats(4, 5)), {"axis": 1}),
        Sample((floats(3, 4, 5), floats(5), floats(5)), {"axis": -1}, 3),
    ),
    "prelu": (Sample((floats(2, 3, 4), floats(1))), Sample((floats(2, 3, 4), floats(2, 1, 1)))),
    "nll_loss": _each(
        (floats(4, 5, 3), ints(4, 3, high=5), floats(5)),
        *({"reduction": how, "ignore_index": 2} for how in ("none", "sum", "mean")),
    ),
}


def samples_of(spec: OpSpec) -> Samples:
    """Returns the samples of an operator, first those of its axis rule."""
    return (*rules.samples_of(spec), *SAMPLES.get(spec.name, ()))
