"""What tests of interpreted kernels share: oracles in f64, poison, and bounds that calibrate.

A kernel passes when its largest error against the f64 oracle is at most twice that of PyTorch's
own graph in the same dtype, plus one rounding of the largest result, and its relative error in
the norm is below a bound that its dtype alone gives. Gradients, sums of terms that cancel, are
given twice that. Of a few elements, the error of PyTorch's graph is a matter of luck, and of the
processor: before a kernel fails, that graph is run with inputs that are moved by a rounding, too.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

SIZES = (1, 63, 65, 127, 1000)
SIZES_AND_DTYPES = (
    *((size, torch.float32) for size in SIZES),
    *((size, dtype) for size in (65, 1000) for dtype in (torch.float16, torch.bfloat16)),
)
NORM_BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LAYOUTS = ("contiguous", "padded rows", "transposed", "every second column")
MOVES = 4
"""Runs of PyTorch's graph with moved inputs, where its first did not suffice."""


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Fills `torch.empty` with NaN and refuses products of bf16, wrong in the interpreter.

    Overflow to infinity is part of what kernels do with extreme inputs: numpy stays silent.
    """
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_filled = torch.utils.deterministic.fill_uninitialized_memory
    original = interpreter.InterpreterBuilder.create_dot

    def guarded(self: object, a: object, b: object, *rest: object) -> object:
        for operand in (a, b):
            if operand.dtype.scalar == tl.bfloat16:
                raise NotImplementedError(
                    "tl.dot of bf16 is silently wrong in Triton's interpreter\n"
                    "hint: interpret in f16 or f32; compile ahead of time for bf16"
                )
        return original(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = guarded
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # Triton 3.6's own; an error of numpy 2.4, which needs Triton 3.8
            warnings.filterwarnings("ignore", "Conversion of an array", DeprecationWarning)
            yield
    finally:
        interpreter.InterpreterBuilder.create_dot = original
        torch.use_deterministic_algorithms(was_deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = was_filled


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Returns x with other strides, in memory that is NaN wherever x is not."""
    match layout:
        case "contiguous":
            memory = torch.full((x.numel() + 32,), torch.nan, dtype=x.dtype)
            view = memory[16 : 16 + x.numel()].view(x.shape)
        case "padded rows":
            memory = torch.full((*x.shape[:-1], x.shape[-1] + 5), torch.nan, dtype=x.dtype)
            view = memory[..., 2 : 2 + x.shape[-1]]
        case "transposed":
            swapped = (*x.shape[:-2], x.shape[-1], x.shape[-2])
            view = torch.full(swapped, torch.nan, dtype=x.dtype).transpose(-1, -2)
        case _:
            memory = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
            view = memory[..., ::2]
    return view.copy_(x)


Function = Callable[..., Tensor | tuple[Tensor, ...]]


def check(
    kernel: Function, reference: Function, inputs: Sequence[Tensor | None], seed: int = 0
) -> None:
    """Compares results and gradients of a kernel with the oracle, and the oracle with PyTorch.

    Args:
        kernel: Called with `inputs`.
        reference: The same in PyTorch's operators; run in f64 and in the dtype of the inputs.
        inputs: Tensors that are differentiated, and Nones.
        seed: Of the gradients that are handed to the results.
    """
    generator = torch.Generator().manual_seed(seed)
    with interpreted():
        found, weights = _run(kernel, inputs, None, generator)
    wide = [None if x is None else x.double() for x in inputs]
    oracle, _ = _run(reference, wide, weights, generator)
    eager, _ = _run(reference, inputs, weights, generator)
    assert len(found) == len(oracle)

    @functools.cache
    def moved_errors() -> list[list[Tensor]]:
        return [_moved_errors(reference, inputs, weights, generator) for _ in range(MOVES)]

    for idx, (result, exact, usual) in enumerate(zip(found, oracle, eager, strict=True)):
        is_gradient = idx >= len(weights)
        slack = 2.0 if is_gradient else 1.0
        assert_close(
            result, exact, usual, f"{idx} (gradient: {is_gradient})", slack,
            lambda idx=idx: [errors[idx] for errors in moved_errors()],
        )  # fmt: skip


def _moved_errors(
    reference: Function, inputs: Sequence[Tensor | None], weights: list[Tensor],
    generator: torch.Generator,
) -> list[Tensor]:  # fmt: skip
    """Returns the errors of results and gradients of PyTorch's graph; 0 where they are no numbers.

    Args:
        reference: The graph.
        inputs: What is moved, each element by up to a rounding.
        weights: The gradients handed in.
        generator: Draws the moves.
    """

    def moved(x: Tensor) -> Tensor:
        away = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (x.double() * (1 + torch.finfo(x.dtype).eps * away)).to(x.dtype)

    starts = [None if x is None else moved(x) for x in inputs]
    exact, _ = _run(
        reference, [None if x is None else x.double() for x in starts], weights, generator
    )
    usual, _ = _run(reference, starts, weights, generator)
    errors = (found.double() - value for found, value in zip(usual, exact, strict=True))
    return [torch.where(error.isfinite(), error, 0.0) for error in errors]


@dataclass(frozen=True, slots=True)
class Closeness:
    """How far a result is from its oracle, and how far it may be.

    Args:
        error: Largest error.
        bound: What it may be.
        norm: Error in the norm.
        norm_bound: What that may be.
    """

    error: float
    bound: float
    norm: float
    norm_bound: float


Errors = Callable[[], Sequence[Tensor]]
"""Returns what PyTorch's graph misses its oracle by, in other runs."""


def closeness(
    result: Tensor, exact: Tensor, usual: Tensor, slack: float = 1.0, others: Errors | None = None
) -> Closeness:
    """Returns the errors of finite elements beside the two bounds of this file."""
    got, exact, wide = result.double(), exact.double(), usual.double()
    largest = exact.abs().max().item()
    rounding = torch.finfo(result.dtype).eps * max(largest, torch.finfo(result.dtype).tiny)
    of_dtype = NORM_BOUND[result.dtype] * exact.norm().item()

    def judged(misses: Sequence[Tensor]) -> Closeness:
        calibration = max(miss.abs().max().item() for miss in misses)
        # PyTorch's own graph may miss the bound of the dtype where terms cancel
        usual_norm = 2 * max(miss.norm().item() for miss in misses)
        return Closeness(
            (got - exact).abs().max().item(), slack * (2 * calibration + rounding),
            (got - exact).norm().item(), slack * max(of_dtype, usual_norm),
        )  # fmt: skip

    found = judged([wide - exact])
    if others is None or (found.error <= found.bound and found.norm <= found.norm_bound):
        return found
    return judged([wide - exact, *others()])


def assert_close(
    result: Tensor, exact: Tensor, usual: Tensor, what: str, slack: float = 1.0,
    others: Errors | None = None,
) -> None:  # fmt: skip
    """Asserts the two bounds of this file; places of NaN and infinity have to agree."""
    assert result.dtype == usual.dtype, what
    assert result.shape == exact.shape, what
    finite = torch.isfinite(usual)
    assert torch.equal(torch.isfinite(result), finite), f"{what}: NaN or infinity elsewhere"
    if not finite.any():
        return
    found = closeness(
        result[finite], exact[finite], usual[finite], slack,
        None if others is None else lambda: [errors[finite] for errors in others()],
    )  # fmt: skip
    assert found.error <= found.bound, f"{what}: error {found.error:.3g} above {found.bound:.3g}"
    assert found.norm <= found.norm_bound, f"{what}: relative error in the norm"


def _run(
    function: Function,
    inputs: Sequence[Tensor | None],
    weights: list[Tensor] | None,
    generator: torch.Generator,
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns results and gradients, and the gradients handed in (made where there are none)."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    results = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if weights is None:
        weights = [
            torch.randn(result.shape, generator=generator).to(result.dtype) for result in results
        ]
    handed = [w.to(result.dtype) for w, result in zip(weights, results, strict=True)]
    wanted = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(results, wanted, handed, allow_unused=True)
    found = [g for g in gradients if g is not None]
    assert len(found) == len(wanted), "every input has a gradient"
    return [result.detach() for result in results] + found, weights
