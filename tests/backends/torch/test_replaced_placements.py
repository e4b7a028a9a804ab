"""Every variant of `replace-softmax` wherever attention stands: masks, groups, cross, one key.

ONNX Runtime and PyTorch in f32 are held against the numpy meaning in f64; gradients in f64 against
differences. Rows without a visible key give zeros and gradients of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.attention.variants import VARIANTS
from tests.backends.torch.models import torch
from tests.conformance.cases import run_ort

from regraft.backends.torch import to_torch  # isort: skip  # needs torch

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(11)


def _floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def _hidden(keep: Array) -> Array:
    return np.where(keep, np.float32(0), np.finfo(np.float32).min)


KEEP = RNG.integers(0, 2, (2, 1, 5, 7)).astype(bool)
KEEP[..., 0] = True
NOTHING = KEEP.copy()
NOTHING[1, 0, 2] = False  # a query that sees no key
PADDED = np.arange(7) < np.array([7, 3])[:, None, None, None]

PLACEMENTS: Mapping[str, tuple[str, str, list[Array]]] = {
    "causal, groups of 3": (
        "", "kv_groups = 3, causal_offset = 0",
        [_floats(2, 6, 5, 4), _floats(2, 2, 5, 4), _floats(2, 2, 5, 3)],
    ),
    "causal, one position": (
        "", "causal_offset = 0",
        [_floats(2, 3, 1, 5), _floats(2, 3, 1, 5), _floats(2, 3, 1, 5)],
    ),
    "a step of decoding": (
        "", "kv_groups = 2, causal_offset = 6",
        [_floats(2, 4, 1, 4), _floats(2, 2, 7, 4), _floats(2, 2, 7, 4)],
    ),
    "cross, a row without keys": (
        "bool[B, 1, S, T]", "", [_floats(2, 3, 5, 5), *[_floats(2, 3, 7, 5)] * 2, NOTHING],
    ),
    "groups, padded by the lowest number": (
        "f32[B, 1, 1, T]", "kv_groups = 2",
        [_floats(2, 4, 5, 4), _floats(2, 2, 7, 4), _floats(2, 2, 7, 4), _hidden(PADDED)],
    ),
    "a window": (
        "", "causal_offset = 0, window = [2, 0]",
        [_floats(2, 3, 5, 5), _floats(2, 3, 5, 5), _floats(2, 3, 5, 5)],
    ),
}  # fmt: skip

SPELLED = ("entmax,learned=true", "clipped,gamma=-0.05", "clipped,alpha=0.5", "entmax,alpha=1.3",
           "top-k,k=2", "softplus-sharp,power=2", "selective,budget=1")  # fmt: skip

_LARGE = 512 * float(np.finfo(np.float32).eps)
"""Sums of 7 terms of size about 1; powers of 3 multiply what is rounded."""


def _replaced(placement: str, variant: str) -> tuple[Module, list[Array]]:
    mask, attrs, arrays = PLACEMENTS[placement]
    cross = arrays[0].shape[2] != arrays[1].shape[2]
    types = []
    for x in arrays[:3]:
        length = "T" if cross and x.shape[2] != arrays[0].shape[2] else "S"
        types.append(f"f32[B, {x.shape[1]}, {length}, {x.shape[3]}]")
    operands = ["%q", "%k", "%v", *(["%mask"] if mask else [])]
    inputs = ", ".join(f"{n} : {t}" for n, t in zip(operands, [*types, mask], strict=False))
    symbols = "symbol B\nsymbol S" + ("\nsymbol T" if cross else "")
    module = parse_module(
        f'module "placed"\n{symbols}\ngraph({inputs}) {{\n'
        f"  %y = attention({', '.join(operands)}) "
        f"{{{', '.join(filter(None, ['scale = 0.7', attrs]))}}}\n  return %y\n}}\n"
    )
    records = regraft.apply(module, f"replace-softmax{{variant={variant}}}", check="off")
    if not records[-1].stats["replaced"]:
        pytest.skip(records[-1].skipped[0].reason)
    _stir(module)
    return module, arrays


def _stir(module: Module) -> None:
    """Moves what is learned away from where it begins, where it often does nothing."""
    rng = np.random.default_rng(5)
    for name in list(module.weights):
        if name.startswith("attention."):
            array = module.weights[name].numpy()
            moved = array + rng.uniform(-0.3, 0.3, array.shape)
            module.weights.set(name, ArrayWeight(moved.astype(array.dtype)))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("variant", [*VARIANTS, *SPELLED])
def test_numbers_and_gradients(variant: str, placement: str) -> None:
    module, arrays = _replaced(placement, variant)
    names = [value.name or "" for value in module.graph.inputs]
    feeds = dict(zip(names, arrays, strict=True))
    (expected,) = evaluate(module, feeds, oracle=True).values()
    (there,) = run_ort(to_proto(module), arrays)
    net = to_torch(module)
    with torch.no_grad():
        here = net(*map(torch.from_numpy, arrays)).numpy()
    bound = _LARGE * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(there, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(here, expected, rtol=0, atol=bound)
    if "without keys" in placement:
        assert (expected[1, :, 2] == 0).all()
        assert (there[1, :, 2] == 0).all()
        assert (here[1, :, 2] == 0).all()
    _check_gradients(net.double(), arrays)


def _check_gradients(net: Any, arrays: list[Array]) -> None:
    given = [torch.from_numpy(x) for x in arrays]
    floating = [x.double().requires_grad_() for x in given[:3]]

    def run(*moved: Any) -> Any:
        rest = [x.double() if x.is_floating_point() else x for x in given[3:]]
        return net(*moved, *rest)

    assert torch.autograd.gradcheck(run, floating, fast_mode=True)
