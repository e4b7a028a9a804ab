"""A mixture's experts whose matrices are codes, which the grouped products unpack."""

from __future__ import annotations

import functools

from torch import Tensor

from regraft.backends.triton.kernels.coded_matrices import CodedMatrices
from regraft.backends.triton.kernels.experts import mix_experts
from regraft.backends.triton.kernels.grouped_low_bit import grouped_low_bit_linear
from regraft.backends.triton.kernels.grouped_low_bit_hidden import grouped_low_bit_hidden


def low_bit_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: CodedMatrices,
    down: CodedMatrices,
    activation: str,
    gate: CodedMatrices | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    limit: float = 0.0,
    up_offset: float = 0.0,
    weigh_input: bool = False,
    taken: Tensor | None = None,
    bounds: str = "clip",
    gate_limit: float = 0.0,
    norm_epsilon: float = 0.0,
    precision: str = "ieee",
) -> Tensor:
    """Returns the weighted sum over the chosen experts of layers whose matrices are codes.

    Args:
        x: [*b, D].
        chosen: i64[tokens, top_k].
        weights: [tokens, top_k].
        up: One matrix [D, F] per expert.
        down: One matrix [F, O] per expert.
        activation: Of the gate, or of `up` without one; this and the rest as in `experts`.
        gate: Coded as `up` is.
        up_bias: [E, F].
        down_bias: [E, O].
        gate_bias: [E, F].
        limit: What bounds the gate from above and what it multiplies on both sides; 0: nothing.
        up_offset: Added to what the gate multiplies.
        weigh_input: Whether weights multiply what an expert reads.
        taken: Which of the chosen compute the token, [tokens, top_k]; the weight of others is 0.
        bounds: How the limit bounds; see `grouped_hidden`.
        gate_limit: That of the gate; 0: `limit`.
        norm_epsilon: Of the root mean square that results are divided by; 0: they are not.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.
    """
    hidden_of = functools.partial(
        grouped_low_bit_hidden, up=up, gate=gate, activation=activation, up_bias=up_bias,
        gate_bias=gate_bias, limit=limit, up_offset=up_offset, bounds=bounds,
        gate_limit=gate_limit, precision=precision,
    )  # fmt: skip
    results_of = functools.partial(
        grouped_low_bit_linear, matrices=down, bias=down_bias, precision=precision
    )
    return mix_experts(
        x, chosen, weights, len(up.codes), hidden_of, results_of, weigh_input, taken, norm_epsilon
    )
