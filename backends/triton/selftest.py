"""Runs the model on the example that it was converted with, and compares what comes out.

    python selftest.py                        on a GPU the kernels, on a CPU their references
    TRITON_INTERPRET=1 python selftest.py     on a CPU the kernels, in Triton's interpreter
    python selftest.py --device cpu

`selftest.pt` holds the example, what the model gave in f64, and how far PyTorch's own operators in
the model's dtypes were from that. An output passes when its largest error is at most four times
theirs, or twice the step of its dtype (1e-5 for f32) of the largest element. The gradient of the
mean square of the outputs is compared by parameter with what PyTorch's own operators gave: its
norm and its product with a fixed vector, to half of the digits of the dtype, as its terms cancel,
and to four times the most that several draws of parameters moved by one rounding make of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

EXACT = 1e-5
SUMS = 16
"""Roundings of the largest gradient that the least may have."""


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Iterates over the tensors of a nest in order."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        for item in result.values():
            yield from tensors_in(item)
    elif isinstance(result, list | tuple):
        for item in result:
            yield from tensors_in(item)
    elif isinstance(result, SimpleNamespace):
        yield from tensors_in(vars(result))


def moved(item: Any, device: str) -> Any:
    """Returns a nest with its tensors on a device."""
    if isinstance(item, Tensor):
        return item.to(device)
    if isinstance(item, dict):
        return {name: moved(each, device) for name, each in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(moved(each, device) for each in item)
    if isinstance(item, SimpleNamespace):  # what stands for a cache
        return SimpleNamespace(**moved(vars(item), device))
    return item


def mean_square(results: list[Tensor]) -> Tensor | None:
    """Returns half the sum over float outputs of their mean squares; None where there is none."""
    floats = [x for x in results if x.is_floating_point() and x.requires_grad and x.numel()]
    return torch.stack([x.double().square().mean() / 2 for x in floats]).sum() if floats else None


def gradients(named: dict[str, Tensor], results: list[Tensor]) -> dict[str, Tensor]:
    """Returns by name the gradient of `mean_square` for each tensor that it depends on."""
    loss = mean_square(results)
    named = {name: p for name, p in named.items() if p.requires_grad}
    if loss is None or not named:
        return {}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named, found, strict=True)
    return {name: x.detach() for name, x in pairs if x is not None}


def summary(gradient: Tensor) -> list[float]:
    """Returns the norm of a gradient and its product with cos(0), cos(1), ..."""
    flat = gradient.double().cpu().reshape(-1)
    probe = torch.arange(flat.numel(), dtype=torch.float64).cos()
    return [flat.norm().item(), (flat @ probe).item()]


def check_outputs(results: list[Tensor], example: dict[str, Any]) -> list[str]:
    """Returns what is wrong with outputs; prints a line for each."""
    problems = []
    expected = example["outputs"]
    if len(results) != len(expected):
        return [f"{len(results)} outputs, expected {len(expected)}"]
    for idx, (result, exact) in enumerate(zip(results, expected, strict=True)):
        label = example["names"][idx]
        result = result.detach().cpu()
        if result.shape != exact.shape:
            problems.append(f"{label}: shape {list(result.shape)}, expected {list(exact.shape)}")
            continue
        if not result.is_floating_point():
            error, allowed = float((result != exact).sum()), 0.0
        else:
            got, finite = result.double(), torch.isfinite(exact)
            if not torch.equal(torch.isfinite(got), finite):
                problems.append(f"{label}: NaN or infinity where PyTorch has none, or none there")
                continue
            got, exact = got[finite], exact[finite].double()
            scale = exact.abs().max().item() if exact.numel() else 0.0
            error = (got - exact).abs().max().item() if exact.numel() else 0.0
            step = 2 * torch.finfo(result.dtype).eps
            allowed = max(max(EXACT, step) * scale, 4 * example["floors"][idx])
        print(f"output {label}: largest error {error:.3g}, allowed {allowed:.3g}")
        if error > allowed:
            problems.append(f"{label}: error {error:.3g} above {allowed:.3g}")
    return problems


def check_gradients(found: dict[str, list[float]], example: dict[str, Any]) -> list[str]:
    """Returns what is wrong with gradients; prints how many were compared."""
    problems = []
    expected: dict[str, list[float]] = example["gradients"]
    if found.keys() != expected.keys():
        return [f"gradients of {sorted(found.keys() ^ expected.keys())} are on one side alone"]
    largest = max((norm for norm, _ in expected.values()), default=0.0)
    for name, (norm, product) in expected.items():
        step = torch.finfo(getattr(torch, example["dtypes"][name])).eps ** 0.5
        # what is far below the largest gradient is rounding alone, of sums of many terms
        allowed = step * max(norm, SUMS * step * largest) + 4 * example["moved"][name]
        error = max(abs(found[name][0] - norm), abs(found[name][1] - product))
        if not error <= allowed:
            problems.append(f"gradient of {name}: error {error:.3g} above {allowed:.3g}")
    print(f"gradients of {len(expected)} parameters compared")
    return problems


@contextlib.contextmanager
def products_of_bf16() -> Iterator[None]:
    """Lets Triton's interpreter multiply bf16, whose bits it multiplies as integers otherwise."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl  # a package without kernels needs torch alone
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), *rest)

    builder.create_dot = dot
    try:
        yield
    finally:
        builder.create_dot = original


def main(arguments: list[str]) -> int:
    """Returns 0 when all agrees, else 1."""
    parser = argparse.ArgumentParser(description="Compares the model with its example.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args(arguments).device
    # by default a GPU's convolutions round f32 to ten bits, which no example allows for
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = importlib.import_module(f"{__package__}.model" if __package__ else "model")
    with torch.serialization.safe_globals([SimpleNamespace]):
        example = torch.load(Path(__file__).with_name("selftest.pt"), weights_only=True)
    net = model.load().to(device)
    given, named = moved(example["args"], device), moved(example["kwargs"], device)
    with products_of_bf16():
        results = list(tensors_in(net(*given, **named)))
        found = gradients(dict(net.named_parameters()), results) if example["gradients"] else {}
    problems = check_outputs(results, example)
    if example["gradients"]:
        problems += check_gradients({name: summary(x) for name, x in found.items()}, example)
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    print("self-test passed" if not problems else f"self-test failed: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
