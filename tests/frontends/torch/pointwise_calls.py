"""Example calls of element-wise overloads."""

from __future__ import annotations

import torch

from tests.frontends.torch.calls import Call, call
from tests.frontends.torch.tensors import bools, floats, ints

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
I32, I64, U8, I8 = torch.int32, torch.int64, torch.uint8, torch.int8

_UNARY = {
    (-2.0, 2.0): (
        "exp", "erf", "special_erf", "sin", "cos", "tan", "atan", "arctan", "sinh", "cosh", "tanh",
        "asinh", "arcsinh", "neg", "negative", "abs", "absolute", "sign", "sgn", "positive",
        "floor", "ceil",
        "round", "trunc", "fix", "frac", "square", "deg2rad", "rad2deg", "exp2", "special_exp2",
        "expm1", "special_expm1", "erfc", "special_erfc", "sinc", "special_sinc", "isnan", "isinf",
        "isposinf", "isneginf", "isfinite", "nan_to_num", "relu", "sigmoid", "special_expit",
        "silu", "mish", "selu", "hardswish", "hardsigmoid", "gelu", "elu", "celu", "relu6",
        "hardtanh", "softplus", "log_sigmoid", "hardshrink", "softshrink", "leaky_relu",
        "signbit", "bitwise_not",
    ),
    (0.01, 4.0): ("log", "sqrt", "rsqrt", "log2", "log10", "reciprocal"),
    (-0.9, 3.0): ("log1p", "special_log1p"),
    (-0.99, 0.99): ("asin", "acos", "arcsin", "arccos", "atanh", "arctanh"),
    (0.02, 0.98): ("logit", "special_logit"),
    (1.0, 9.0): ("acosh", "arccosh"),
}  # fmt: skip
_ALSO_INTS = {
    "exp", "sqrt", "sin", "tanh", "sigmoid", "neg", "abs", "sign", "floor", "ceil", "round",
    "trunc", "square", "relu", "isnan", "isinf", "isfinite", "nan_to_num", "reciprocal", "rsqrt",
    "erf", "log", "isposinf", "isneginf", "expm1", "positive", "fix", "deg2rad",
}  # fmt: skip
_INTS_ONLY = {"bitwise_not", "signbit"}


def _unary() -> list[Call]:
    items = []
    for (low, high), names in _UNARY.items():
        for name in names:
            if name not in _INTS_ONLY:
                for dtype in (F32, F16, BF16, F64):
                    x = floats(3, 5, dtype=dtype, low=low, high=high)
                    items.append(call(f"{name}.default", x))
            if name in _ALSO_INTS | _INTS_ONLY:
                x = ints(3, 4, low=1 if low > 0 else -3)
                items.append(call(f"{name}.default", x))
                items.append(call(f"{name}.default", x.to(I32)))
    return items


_SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 0.5, 2.5, -3.5])
_PARTICULAR = (
    *(
        call(f"{name}.default", _SPECIAL)
        for name in ("exp", "sqrt", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "relu",
                     "nan_to_num", "round", "floor", "abs", "expm1", "tanh")
    ),
    call("nan_to_num.default", _SPECIAL, 1.0, 2.0, -3.0),
    call("abs.default", ints(4, dtype=U8)),
    call("round.decimals", floats(3, 4), decimals=2),
    call("logit.default", floats(6, low=-0.2, high=1.2), 0.1),
    call("gelu.default", floats(2, 3), approximate="tanh"),
    call("elu.default", floats(7), 0.7, 1.3, 1.0),
    call("elu.default", floats(7), 1.0, 1.0, 0.5),
    call("celu.default", floats(7), 0.5),
    call("hardtanh.default", floats(7), -0.5, 0.25),
    call("softplus.default", floats(9, low=-4, high=30), 2.0, 10.0),
    call("softplus.default", floats(9, low=-4, high=30)),
    call("threshold.default", floats(9), 0.3, -1.0),
    call("leaky_relu.default", floats(9), 0.2),
    call("rrelu.default", floats(9), 0.1, 0.3),
    call("hardshrink.default", floats(9), 0.7),
    call("softshrink.default", floats(9), 0.7),
    call("prelu.default", floats(2, 3, 4), floats(3)),
    call("prelu.default", floats(2, 3), floats(1)),
    call("prelu.default", floats(5), floats(1)),
    call("_prelu_kernel.default", floats(2, 3, 4), floats(1, 3, 1)),
    call("glu.default", floats(4, 6)),
    call("glu.default", floats(4, 6), 0),
    call("dropout.default", floats(4), 0.1, False),
    call("dropout.default", floats(4), 0.0, True),
    call("feature_dropout.default", floats(2, 3, 4), 0.1, False),
    call("alpha_dropout.default", floats(2, 3, 4), 0.1, False),
    call("feature_alpha_dropout.default", floats(2, 3, 4), 0.1, False),
)  # fmt: skip

# pairs of element types whose result type promotion decides
_PAIRS = (
    (floats(2, 3), floats(3)),
    (floats(2, 3, dtype=F16), floats(2, 1)),
    (floats(2, 3, dtype=BF16), floats(2, 3, dtype=F16)),
    (floats(2, 3, dtype=BF16), floats(3, dtype=BF16)),
    (ints(2, 3), floats(3, low=1)),
    (ints(2, 3, dtype=I32), ints(3, low=1)),
    (floats(2, 3, dtype=F16), torch.tensor(2.5)),  # a 0-d tensor does not promote
    (ints(2, 3), torch.tensor(1.5)),
    (floats(2, 3, dtype=F64), ints(3, low=1)),
    (torch.tensor(3), ints(3, dtype=I32, low=1)),
    (ints(4, dtype=U8), ints(4, dtype=I8, low=1)),
)
_NUMBERS = (
    (floats(2, 3), 2), (floats(2, 3), 0.5), (floats(3, dtype=F16), 0.5), (ints(4), 3),
    (ints(4), 2.5), (ints(4, dtype=I32), 3), (floats(3, dtype=BF16), 3), (torch.tensor(4), 1.5),
)  # fmt: skip


def _binary() -> list[Call]:
    items = []
    for name in ("add", "sub", "mul", "div", "multiply", "subtract", "divide", "true_divide",
                 "remainder", "fmod", "eq", "ne", "lt", "le", "gt", "ge", "not_equal", "less",
                 "less_equal", "greater", "greater_equal", "rsub"):  # fmt: skip
        # PyTorch's own remainder of halves by small numbers is rounded twice
        pairs = _PAIRS if name not in ("remainder", "fmod") else _PAIRS[4:6]
        items += [call(f"{name}.Tensor", a, b) for a, b in pairs]
        numbers = _NUMBERS if name not in ("remainder", "fmod") else _NUMBERS[3:6]
        items += [call(f"{name}.Scalar", a, b) for a, b in numbers]
    for name in ("maximum.default", "minimum.default", "max.other", "min.other",
                 "atan2.default", "arctan2.default", "logical_and.default", "logical_or.default",
                 "logical_xor.default"):  # fmt: skip
        items += [call(name, a, b) for a, b in _PAIRS]
    for name in ("fmax.default", "fmin.default"):
        items += [call(name, _SPECIAL, _SPECIAL.flip(0)), call(name, ints(4), ints(2, 4))]
    for name in ("maximum.default", "minimum.default"):
        items += [call(name, _SPECIAL, _SPECIAL.flip(0)), call(name, bools(4), bools(4))]
    for name in ("lt", "ge", "eq", "ne"):
        items.append(call(f"{name}.Tensor", bools(2, 4), bools(4)))
    return items


def _bits() -> list[Call]:
    items = []
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"):
        items += [
            call(f"{name}.Tensor", ints(2, 3), ints(3)),
            call(f"{name}.Tensor", bools(2, 3), bools(3)),
            call(f"{name}.Tensor", ints(4, dtype=I32), bools(4)),
            call(f"{name}.Scalar", ints(4), 5),
        ]
        if name.startswith("b"):
            items.append(call(f"{name}.Scalar_Tensor", 6, ints(4)))
    for name in ("left", "right"):
        short = f"__{name[0]}shift__"
        x, by = ints(5, low=-40, high=40), ints(5, low=0, high=5)
        items += [
            call(f"bitwise_{name}_shift.Tensor", x, by),
            call(f"bitwise_{name}_shift.Tensor_Scalar", x, 2),
            call(f"bitwise_{name}_shift.Scalar_Tensor", 9, by),
            call(f"{short}.Tensor", x, by),
            call(f"{short}.Scalar", x, 3),
        ]
    return [*items, call("bitwise_not.default", bools(4))]


_SEVEN = torch.tensor([7, -7, 6, -6, 0, 5, -1])
_FLOATS = torch.tensor([7.0, -7.0, 6.5, -0.3, 0.0, 1.0, -1.0])
_MORE = (
    call("add.Tensor", floats(3), floats(3), alpha=0.5),
    call("add.Tensor", ints(3), ints(3), alpha=2),
    call("add.Tensor", bools(5), bools(5)),
    call("add.Tensor", floats(3), 2.0, alpha=3),
    call("add.Scalar", floats(3), 2, 3),
    call("sub.Tensor", floats(3), floats(3), alpha=2),
    call("sub.Scalar", floats(3), 2, 3),
    call("rsub.Tensor", floats(3), floats(3), alpha=2),
    call("rsub.Scalar", floats(3), 1.0, 2),
    call("mul.Tensor", bools(5), bools(5)),
    call("mul.Tensor", floats(4, dtype=F16), 1e-9),
    call("mul.Tensor", floats(4, dtype=F16, low=0, high=1e-3), 1e5),
    call("div.Scalar", floats(4, dtype=F16, low=0, high=1e3), 1e5),
    *(
        call(f"{name}.{kind}_mode", x, by, rounding_mode=mode)
        for name in ("div", "divide")
        for mode in (None, "floor", "trunc")
        for kind, x, by in (
            ("Tensor", _SEVEN, torch.tensor([2, 2, -3, 4, 5, -2, 3])),
            ("Tensor", _FLOATS, torch.tensor([2.0, 2.0, -0.5, 0.1, 3.0, 0.1, 0.3])),
            ("Scalar", _SEVEN, 2), ("Scalar", _FLOATS, -0.5), ("Scalar", _SEVEN, 2.0),
        )
    ),
    call("floor_divide.default", _SEVEN, torch.tensor([2, 2, -3, 4, 5, -2, 3])),
    call("floor_divide.default", _FLOATS, torch.tensor(0.5)),
    call("floor_divide.default", _FLOATS, torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 3.0, 0.0])),
    call("floor_divide.Scalar", _SEVEN, 2),
    call("floor_divide.default", ints(5, dtype=U8), torch.tensor(2, dtype=U8)),
    call("remainder.Scalar", _FLOATS, 2.0),
    call("remainder.Tensor", _SEVEN, torch.tensor([2, 2, -3, 4, 5, -2, 3])),
    call("remainder.Scalar_Tensor", 7, torch.tensor([2, -3, 4])),
    call("fmod.Scalar", _FLOATS, 2.0),
    call("fmod.Tensor", _SEVEN, torch.tensor([2, 2, -3, 4, 5, -2, 3])),
    *(call("pow.Tensor_Scalar", floats(5, low=0.1), p) for p in (2, 1, 0.5, -0.5, -1, 3.0, 0)),
    *(call("pow.Tensor_Scalar", floats(5, low=0.1, dtype=d), 2) for d in (F16, BF16, F64)),
    call("pow.Tensor_Scalar", floats(5), 2),
    call("pow.Tensor_Scalar", floats(5), 3),
    call("pow.Tensor_Scalar", ints(5), 2),
    call("pow.Tensor_Scalar", ints(5), 2.0),
    call("pow.Tensor_Tensor", floats(5, low=0.1), floats(2, 5)),
    call("pow.Tensor_Tensor", ints(5), ints(5, low=0)),
    call("pow.Scalar", 2, floats(5)),
    call("pow.Scalar", 10000.0, floats(5)),
    call("pow.Scalar", 2, ints(5, low=0)),
    call("float_power.Tensor_Scalar", floats(5, low=0.1), 2),
    call("float_power.Tensor_Tensor", floats(5, low=0.1), ints(5)),
    call("float_power.Scalar", 2, floats(5)),
    call("xlogy.Scalar_Other", floats(5), 2.0),
    call("xlogy.Scalar_Self", 2.0, floats(5, low=0.1)),
    call("clamp.default", floats(9), -0.5, 0.5),
    call("clamp.default", floats(9), None, 0.5),
    call("clamp.default", ints(9), -2, None),
    call("clamp.default", ints(9), -1.5, 2.5),
    call("clamp.default", ints(9), -(1 << 60), 1 << 60),
    call("clamp.Tensor", floats(9), torch.tensor(-0.5), torch.tensor(0.5)),
    call("clamp.Tensor", floats(2, 3), floats(3, low=-1, high=0), None),
    call("clip.default", floats(9), -0.5, 0.5),
    call("clip.Tensor", floats(9), torch.tensor(-0.5), torch.tensor(0.5)),
    call("clamp_min.default", floats(9), 0.1),
    call("clamp_min.Tensor", floats(9), torch.tensor(0.1)),
    call("clamp_max.default", floats(9, dtype=F16), 0.1),
    call("clamp_max.Tensor", floats(9), torch.tensor(0.1)),
    call("addcmul.default", floats(3), floats(2, 3), floats(3), value=0.5),
    call("addcdiv.default", floats(3), floats(2, 3), floats(3, low=1)),
    call("lerp.Scalar", floats(3), floats(3, low=0), 0.3),
    call("lerp.Tensor", floats(3), floats(3, low=0), floats(3, low=0, high=1)),
    call("atan2.default", torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, -2.0, 3.0]),
         torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0, -1.0, 2.0])),
    call("hypot.default", floats(5), floats(5, low=0)),
    call("hypot.default", torch.zeros(2), torch.zeros(2)),
    call("logaddexp.default", floats(5), floats(5, low=0)),
    call("xlogy.Tensor", torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 3.0])),
    call("special_xlogy.default", torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 3.0])),
    call("heaviside.default", _FLOATS, torch.tensor(0.5)),
    call("logical_not.default", bools(5)),
    call("logical_not.default", floats(5)),
    call("where.self", bools(2, 3), floats(3), floats(2, 1)),
    call("where.self", bools(2, 3), floats(3, dtype=F16), torch.tensor(1.0)),
    call("where.self", bools(2, 3), ints(3), floats(2, 1)),
    call("where.ScalarOther", bools(3), floats(3), 0.0),
    call("where.ScalarOther", bools(3), floats(3), -torch.inf),
    call("where.ScalarSelf", bools(3), 1.0, floats(3)),
    call("where.Scalar", bools(3), 1.0, 0.0),
    call("where.Scalar", bools(3), 0, torch.finfo(F32).min),
    call("masked_fill.Scalar", floats(2, 3), bools(3), -torch.inf),
    call("masked_fill.Scalar", floats(2, 3, dtype=F16), bools(2, 1), -1e4),
    call("masked_fill.Scalar", ints(3), bools(2, 3)[0], 7),
    call("masked_fill.Tensor", floats(2, 3), bools(3), torch.tensor(2.0)),
    call("isclose.default", _SPECIAL, _SPECIAL + 1e-7),
    call("isclose.default", _SPECIAL, _SPECIAL, equal_nan=True),
    call("isclose.default", ints(5), ints(5)),
    call("bitwise_not.default", ints(5, dtype=I32)),
)  # fmt: skip

CALLS: tuple[Call, ...] = (*_unary(), *_PARTICULAR, *_binary(), *_bits(), *_MORE)
