"""What one row of the table is: calls, sizes, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
Maker = Callable[[], Call]

OURS = "ours"
INDUCTOR = "inductor"
"""Peer that compiles, which takes seconds: it is left out where time runs short."""
AUTOTUNED = "max-autotune"
GRAPHED = "ours in a graph"
"""Our call, recorded once as a CUDA graph and replayed."""
COMPILED = (INDUCTOR, AUTOTUNED)
"""Peers that rows go without where time runs short."""
ON_A_GPU = (*COMPILED, GRAPHED)
"""Peers that a run on a CPU goes without."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel at one shape.

    Args:
        number: Of the goal in the table of goals; 0 for a whole model.
        name: Kernel and shape.
        ours: Makes the call of one set of inputs.
        peers: The same by others.
        num_bytes: That have to be read and written, each once.
        flops: Of matrix products; 0 where bytes are the limit.
        goal: What is asked for.
        together: What rows are called whose ratios are also given as one, a geometric mean.
    """

    number: int
    name: str
    ours: Maker
    peers: Mapping[str, Maker] = field(default_factory=dict)
    num_bytes: int = 0
    flops: int = 0
    goal: str = ""
    together: str = ""


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
        is_tiny: Whether the run is in the interpreter, and shows no speed.
    """

    rows: int
    width: int
    tokens: int
    hidden: int
    words: int
    heads: int
    dtype: torch.dtype
    is_tiny: bool


Randn = Callable[..., Tensor]
Function = Callable[..., Any]
Inputs = Callable[[], tuple[Tensor, ...]]


def function(call: Function, inputs: Inputs) -> Maker:
    """Returns a maker of calls with inputs of their own: caches hold no earlier ones."""

    def make() -> Call:
        given = inputs()
        return lambda: call(*given)

    return make


def gradient(call: Function, inputs: Inputs) -> Maker:
    """Returns a maker of calls of the backward alone."""

    def make() -> Call:
        given = [x.requires_grad_() if x.is_floating_point() else x for x in inputs()]
        found = call(*given)
        out = found[0] if isinstance(found, tuple) else found
        dout = torch.randn_like(out)
        leaves = [x for x in given if x.requires_grad]
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True, allow_unused=True)

    return make


def graphed(make: Maker) -> Maker:
    """Returns a maker of the same calls as CUDA graphs."""

    def record() -> Call:
        call = make()
        call()  # compiles, which a graph cannot hold
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return lambda: graph.replay()

    return record


def compiled(call: Function) -> Function:
    """Returns what Inductor makes of a function, for the shapes that it is called with."""
    made: Function = torch.compile(call, dynamic=False)
    return made


def beside(
    timed: Callable[[Function, Inputs], Maker],
    inputs: Inputs,
    eager: Function | None = None,
    others: Mapping[str, Function] | None = None,
    *,
    label: str = "eager",
) -> dict[str, Maker]:
    """Returns peers: PyTorch's operators, what Inductor makes of them, and libraries.

    Args:
        timed: `function` or `gradient`.
        inputs: What all are called with.
        eager: PyTorch's own operators.
        others: Libraries that are installed.
        label: Name of PyTorch's operators.
    """
    peers = {}
    if eager is not None:
        peers = {label: timed(eager, inputs), INDUCTOR: timed(compiled(eager), inputs)}
    return {**peers, **{name: timed(call, inputs) for name, call in (others or {}).items()}}
