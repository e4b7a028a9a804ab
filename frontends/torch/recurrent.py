"""Recurrent layers as one call each, whatever the length of the sequence.

An export computes the sizes of `aten.lstm.input` and the like by their steps, one after another, so
that the length becomes that of the example. While a capture exports, the calls that `nn.LSTM`,
`nn.GRU` and `nn.RNN` make are operators of our own, whose sizes follow from the arguments.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NAMESPACE = "regraft"

_SCHEMA = (
    "(Tensor input, {hx} hx, Tensor[] params, bool has_biases, int num_layers, float dropout, "
    "bool train, bool bidirectional, bool batch_first) -> (Tensor, {states})"
)
_KINDS = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}
"""Carried states by name of the function."""


@functools.cache
def _operators() -> dict[str, Callable[..., Any]]:
    """Returns the operators by name of the function, defined when they are first asked for."""
    for name, num_states in _KINDS.items():
        schema = _SCHEMA.format(
            hx="Tensor" if num_states == 1 else "Tensor[]",
            states=", ".join(["Tensor"] * num_states),
        )
        torch.library.define(f"{NAMESPACE}::{name}", schema)
        compute = getattr(torch.ops.aten, name).input
        torch.library.impl(f"{NAMESPACE}::{name}", "CompositeExplicitAutograd", compute)
        torch.library.register_fake(f"{NAMESPACE}::{name}", _sizes)
    return {name: getattr(getattr(torch.ops, NAMESPACE), name).default for name in _KINDS}


def _sizes(
    input: torch.Tensor, hx: Any, params: Any, has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    states = (hx,) if isinstance(hx, torch.Tensor) else tuple(hx)
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    out = input.new_empty((*input.shape[:-1], width))
    return (out, *(state.new_empty(state.shape) for state in states))


class _Whole(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        # a packed sequence has its batch sizes where the states are here
        if name in _KINDS and not kwargs and isinstance(args[2], list):
            per_layer = (2 if args[7] else 1) * (4 if args[3] else 2)
            if len(args[2]) == args[4] * per_layer:  # one more each: projected states
                return _operators()[name](*args)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def whole_recurrences(module: torch.nn.Module) -> Iterator[None]:
    """Keeps the recurrent layers of a module whole in an export."""
    if not any(isinstance(part, torch.nn.RNNBase) for part in module.modules()):
        yield
        return
    with _Whole(), warnings.catch_warnings():
        # the layers list their parameters anew in every call
        warnings.filterwarnings("ignore", "The tensor attribute.*_flat_weights")
        yield
