"""What an expert of the operator `moe` does between its layers and behind them.

```
hidden = activation(up)                                      without gate
hidden = activation(gate) * (up + up_offset)                 with gate
```

`limit` L bounds gate and values, in one of three ways (`bounds`), where the gate has a limit of its
own if `gate_limit` is not zero:

- `clip`: min(gate, L) goes into the activation, and values are clipped to [-L, L] (gpt-oss)
- `clip_after`: min(activation(gate), L), and values clipped (Step 3.7)
- `soft`: values become L tanh(values / L), and so does the linear factor of a swish, whose sigmoid
  reads the gate as it is (Inkling 2)

With a `norm_epsilon`, what the last layer gives is divided by its root mean square (Muse Spark).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.ops import activation, arithmetic, cast, functions, norm
from regraft.ir.opspec import OpSpec

Array = np.ndarray[Any, Any]

BOUNDS = ("clip", "clip_after", "soft")


@dataclass(frozen=True, slots=True)
class _Call:
    """What an activation's `eval` reads of its context."""

    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExpertActivation:
    """What is applied to hidden channels.

    Args:
        op: The operator.
        attrs: Its attributes.
        squared: Whether its result is squared.
    """

    op: OpSpec
    attrs: Mapping[str, Any]
    squared: bool = False

    def eval(self, x: Array) -> Array:
        """Returns f[*b, F] of f[*b, F]."""
        if self.op.eval is None:
            raise AssertionError(f"`{self.op.name}` has no numpy meaning")
        result: Array = self.op.eval(_Call(self.attrs), x)
        return result * result if self.squared else result

    def write(self, b: Builder, x: Value) -> Value:
        """Writes it in canonical operators."""
        result = b.op(self.op, x, **self.attrs)
        return b.op(arithmetic.mul, result, result) if self.squared else result


ACTIVATIONS: dict[str, ExpertActivation] = {
    "relu": ExpertActivation(activation.relu, {}),
    "relu2": ExpertActivation(activation.relu, {}, squared=True),
    "silu": ExpertActivation(activation.swish, {"alpha": 1.0}),
    "quick_gelu": ExpertActivation(activation.swish, {"alpha": 1.702}),
    "gelu": ExpertActivation(activation.gelu, {"tanh": False}),
    "gelu_tanh": ExpertActivation(activation.gelu, {"tanh": True}),
    "hard_swish": ExpertActivation(activation.hard_swish, {}),
    "sigmoid": ExpertActivation(activation.sigmoid, {}),
    "identity": ExpertActivation(cast.identity, {}),
}
"""By the names that recognition gives them; `identity` is that of experts of low rank."""


def check_hidden(node: Node) -> None:
    """Raises `TypeInferenceError` where what lies between the layers has no meaning."""
    attrs = node.attrs
    if attrs["activation"] not in ACTIVATIONS:
        raise node.error(
            f"`activation` is `{attrs['activation']}`", hint=f"one of {', '.join(ACTIVATIONS)}"
        )
    if attrs["bounds"] not in BOUNDS:
        raise node.error(f"`bounds` is `{attrs['bounds']}`", hint=f"one of {', '.join(BOUNDS)}")
    is_swish = ACTIVATIONS[attrs["activation"]].op is activation.swish
    if attrs["bounds"] == "soft" and not (is_swish and attrs["limit"] > 0):
        raise node.error("soft bounds are those of a swish, and have a limit")


def is_bounded(attrs: Mapping[str, Any]) -> bool:
    """Returns whether anything but an activation and a product lies between the layers."""
    return any(attrs[name] for name in ("limit", "gate_limit", "up_offset"))


def eval_hidden(attrs: Mapping[str, Any], up: Array, gate: Array | None) -> Array:
    """Returns the hidden channels f[*b, F] that the last layer reads."""
    act = ACTIVATIONS[attrs["activation"]]
    if gate is None:
        return act.eval(up)
    limit = attrs["limit"]
    top = attrs["gate_limit"] or limit
    if not limit:
        gated, values = act.eval(gate), up
    elif attrs["bounds"] == "soft":
        opened = ACTIVATIONS["sigmoid"].eval(gate * act.attrs["alpha"])
        gated, values = top * np.tanh(gate / top) * opened, limit * np.tanh(up / limit)
    else:
        values = np.clip(up, -limit, limit)
        if attrs["bounds"] == "clip":
            gated = act.eval(np.minimum(gate, top))
        else:
            gated = np.minimum(act.eval(gate), top)
    result: Array = gated * (values + attrs["up_offset"])
    return result


def eval_result(attrs: Mapping[str, Any], rows: Array) -> Array:
    """Returns what an expert gives, of what its last layer gives, f[*b, O]."""
    if not attrs["norm_epsilon"]:
        return rows
    square = np.square(rows).mean(axis=-1, keepdims=True)
    result: Array = rows / np.sqrt(square + rows.dtype.type(attrs["norm_epsilon"]))
    return result


def write_hidden(attrs: Mapping[str, Any], b: Builder, up: Value, gate: Value | None) -> Value:
    """Writes `eval_hidden` in canonical operators."""
    act = ACTIVATIONS[attrs["activation"]]
    if gate is None:
        return act.write(b, up)
    limit, kind = attrs["limit"], attrs["bounds"]
    top = attrs["gate_limit"] or limit
    if not limit:
        gated = act.write(b, gate)
    elif kind == "soft":
        alpha = b.constant(act.attrs["alpha"], gate.dtype)
        opened = b.op(activation.sigmoid, b.op(arithmetic.mul, gate, alpha))
        gated = b.op(arithmetic.mul, _softly(b, gate, top), opened)
        up = _softly(b, up, limit)
    else:
        up = b.op(activation.clip, up, min=-limit, max=limit)
        if kind == "clip":
            gated = act.write(b, b.op(activation.clip, gate, max=top))
        else:
            gated = b.op(activation.clip, act.write(b, gate), max=top)
    if attrs["up_offset"]:
        up = b.op(arithmetic.add, up, b.constant(attrs["up_offset"], up.dtype))
    return b.op(arithmetic.mul, gated, up)


def _softly(b: Builder, x: Value, limit: float) -> Value:
    """Writes limit tanh(x / limit)."""
    scale = b.constant(limit, x.dtype)
    return b.op(arithmetic.mul, b.op(functions.tanh, b.op(arithmetic.div, x, scale)), scale)


def write_result(attrs: Mapping[str, Any], b: Builder, rows: Value) -> Value:
    """Writes `eval_result` in canonical operators."""
    if not attrs["norm_epsilon"]:
        return rows
    size = None if rows.shape is None else rows.shape[-1]
    if not isinstance(size, int) or rows.dtype is None:
        raise AssertionError("a norm of results needs their number of channels")
    ones = b.constant(np.ones(size), rows.dtype)
    return b.op(norm.rms_norm, rows, ones, epsilon=attrs["norm_epsilon"])
