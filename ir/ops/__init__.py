"""All operators, assembled by explicit concatenation: nothing registers itself on import."""

from __future__ import annotations

from regraft.ir import constants
from regraft.ir.ops import (
    activation,
    arithmetic,
    attention,
    blocks,
    cast,
    causal_conv,
    control,
    conv,
    cumulative,
    deform_conv,
    detection,
    einsum,
    fill,
    functions,
    gathering,
    grid_sample,
    hybrid_attention,
    linalg,
    linear_attention,
    logical,
    loss,
    moe,
    norm,
    optional,
    pool,
    quant,
    quant_linalg,
    random,
    reduce,
    region,
    repeating,
    reshaping,
    resize,
    response_norm,
    rnn,
    rotary,
    rounding,
    scattering,
    selecting,
    sequence,
    signal,
    sizes,
    slicing,
    softmax,
    unpool,
)
from regraft.ir.opspec import OpSpec

FAMILIES: tuple[tuple[OpSpec, ...], ...] = (
    constants.OPS,
    activation.OPS,
    arithmetic.OPS,
    cast.OPS,
    cumulative.OPS,
    fill.OPS,
    functions.OPS,
    logical.OPS,
    random.OPS,
    rounding.OPS,
    control.OPS,
    rnn.OPS,
    linalg.OPS,
    einsum.OPS,
    reduce.OPS,
    softmax.OPS,
    loss.OPS,
    causal_conv.OPS,
    conv.OPS,
    deform_conv.OPS,
    grid_sample.OPS,
    norm.OPS,
    pool.OPS,
    region.OPS,
    resize.OPS,
    response_norm.OPS,
    unpool.OPS,
    quant.OPS,
    quant_linalg.OPS,
    sizes.OPS,
    reshaping.OPS,
    slicing.OPS,
    repeating.OPS,
    blocks.OPS,
    gathering.OPS,
    scattering.OPS,
    selecting.OPS,
    attention.OPS,
    rotary.OPS,
    linear_attention.OPS,
    hybrid_attention.OPS,
    signal.OPS,
    detection.OPS,
    sequence.OPS,
    moe.OPS,
    optional.OPS,
)


def index(*families: tuple[OpSpec, ...]) -> dict[str, OpSpec]:
    """Returns the specs by name.

    Raises:
        ValueError: When two specs share a name.
    """
    specs: dict[str, OpSpec] = {}
    for family in families:
        for spec in family:
            if specs.setdefault(spec.name, spec) is not spec:
                raise ValueError(f"two operators are named `{spec.name}`")
    return specs


OPS: dict[str, OpSpec] = index(*FAMILIES)
