"""Small stacks of equal layers for tests of depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.protocol import Context

Array = np.ndarray[Any, Any]


def stack(count: int, width: int = 8, scale: float = 1.0) -> Module:
    """Returns layers `h + tanh(h @ up) @ down`, then a matrix of its own kind."""
    lines = ['module "stack"', "symbol B"]
    for i in range(count):
        lines += [
            f'weight @"{i}.up" : f32[{width}, {2 * width}] role=param = random({3 * i})',
            f'weight @"{i}.down" : f32[{2 * width}, {width}] role=param = random({3 * i + 1})',
            f'weight @"{i}.bias" : f32[{width}] role=param = random({3 * i + 2})',
        ]
    lines.append(f"weight @head : f32[{width}, 5] role=param = random(99)")
    lines.append(f"graph(%h0 : f32[B, {width}]) {{")
    for i in range(count):
        lines += [
            f'  %u{i} = weight @"{i}.up"',
            f"  %m{i} = matmul(%h{i}, %u{i})",
            f"  %t{i} = tanh(%m{i})",
            f'  %d{i} = weight @"{i}.down"',
            f"  %p{i} = matmul(%t{i}, %d{i})",
            f'  %b{i} = weight @"{i}.bias"',
            f"  %q{i} = add(%p{i}, %b{i})",
            f"  %h{i + 1} = add(%h{i}, %q{i})",
        ]
    lines += ["  %head = weight @head", f"  %y = matmul(%h{count}, %head)", "  return %y", "}"]
    module = parse_module("\n".join(lines))
    for i in range(count):
        down = module.weights[f"{i}.down"].numpy() * np.float32(scale)
        module.weights.set(f"{i}.down", ArrayWeight(down))
    return module


def samples(count: int = 6, width: int = 8) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"h0": rng.standard_normal((32, width)).astype(np.float32)} for _ in range(count)]


def context(width: int = 8) -> Context:
    return Context(samples=samples(width=width), activations=OrtActivations())
