"""What one row of the table is: calls, sizes, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel at one shape.

    Args:
        name: Kernel, shape and dtype.
        ours: Makes the call of one set of inputs.
        peers: The same by others; None where a peer is not there.
        num_bytes: That have to be read and written, each once.
        flops: Of matrix products; 0 where bytes are the limit.
    """

    name: str
    ours: Callable[[], Call]
    peers: Mapping[str, Callable[[], Call]] = field(default_factory=dict)
    num_bytes: int = 0
    flops: int = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a run.

    Args:
        rows: Rows of norms, softmax and gated activations.
        width: Their elements.
        tokens: Rows of products, keys of attention.
        hidden: Inner size of products.
        words: Of the vocabulary.
        heads: Of attention.
        dtype: Of everything.
    """

    rows: int
    width: int
    tokens: int
    hidden: int
    words: int
    heads: int
    dtype: torch.dtype


Randn = Callable[..., Tensor]


def function(
    call: Callable[..., object], inputs: Callable[[], tuple[Tensor, ...]]
) -> Callable[[], Call]:
    """Returns a maker of calls with inputs of their own: caches hold no earlier ones."""

    def make() -> Call:
        given = inputs()
        return lambda: call(*given)

    return make


def gradient(
    call: Callable[..., Tensor], inputs: Callable[[], tuple[Tensor, ...]]
) -> Callable[[], Call]:
    """Returns a maker of calls of the backward alone."""

    def make() -> Call:
        given = [x.requires_grad_() if x.is_floating_point() else x for x in inputs()]
        out = call(*given)
        dout = torch.randn_like(out)
        leaves = [x for x in given if x.requires_grad]
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return make
