"""Banks of keys and values: nothing without them, the prefix itself with all of its keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from tests.conformance.cases import run_ort

Array = np.ndarray[Any, Any]

B, H, K, S, P, D, C = 2, 4, 2, 6, 5, 8, 16


def _stack() -> Module:
    """Returns two residual layers of causal attention with grouped heads, without positions."""
    sizes = {"q": H * D, "k": K * D, "v": K * D}
    lines = ['module "stack"', "symbol B", "symbol S"]
    for i in range(2):
        lines += [
            f"weight @{n}{i} : f32[{C}, {size}] role=param = random({10 * i + j})"
            for j, (n, size) in enumerate(sizes.items())
        ]
        lines += [f"weight @o{i} : f32[{H * D}, {C}] role=param = random({10 * i + 5})"]
    lines += [f"graph(%x0 : f32[B, S, {C}]) {{"]
    grouped = f"scale = {D**-0.5}, causal_offset = 0, kv_groups = {H // K}"
    for i in range(2):
        for n, size in sizes.items():
            lines += [
                f"  %{n}{i} = weight @{n}{i}",
                f"  %{n}f{i} = matmul(%x{i}, %{n}{i})",
                f"  %{n}s{i} = reshape(%{n}f{i}) {{shape = [B, S, {size // D}, {D}]}}",
                f"  %{n}h{i} = transpose(%{n}s{i}) {{perm = [0, 2, 1, 3]}}",
            ]
        lines += [
            f"  %o{i} = weight @o{i}",
            f"  %a{i} = attention(%qh{i}, %kh{i}, %vh{i}) {{{grouped}}}",
            f"  %t{i} = transpose(%a{i}) {{perm = [0, 2, 1, 3]}}",
            f"  %m{i} = reshape(%t{i}) {{shape = [B, S, {H * D}]}}",
            f"  %p{i} = matmul(%m{i}, %o{i})",
            f"  %x{i + 1} = add(%x{i}, %p{i})",
        ]
    return parse_module("\n".join([*lines, "  return %x2", "}"]))


RNG = np.random.default_rng(3)
PREFIX = (RNG.standard_normal((1, P, C)) / 4).astype(np.float32)
X = (RNG.standard_normal((B, S, C)) / 4).astype(np.float32)


def _bank(prefix: Array = PREFIX) -> dict[str, Array]:
    """Returns the bank of a prefix."""
    module = _stack()
    regraft.apply(module, "attach-memory{mode=collect}", check="off")
    found = evaluate(module, {"x0": prefix})
    return {name: value for name, value in found.items() if name.startswith("memory")}


def _attached(k: int) -> Module:
    module = _stack()
    (record,) = regraft.apply(module, f"attach-memory{{k={k}}}", check="off")
    verify(module)
    assert record.stats == {"attach": 2 if k else 0}
    return module


def _out(module: Module, feeds: dict[str, Array]) -> Array:
    return next(iter(evaluate(module, feeds).values()))


@pytest.mark.parametrize("k", [P, P + 3])
def test_all_keys_of_a_prefix_are_the_prefix(k: int) -> None:
    whole = np.concatenate([np.repeat(PREFIX, B, 0), X], axis=1)
    expected = _out(_stack(), {"x0": whole})[:, P:]
    module = _attached(k)
    feeds = {"x0": X, **_bank()}
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(_out(module, feeds), expected, rtol=0, atol=bound)
    regraft.apply(module, "canonicalize,legalize{target=ort-cpu}", check="off")
    names = [value.name for value in module.graph.inputs]
    (found,) = run_ort(to_proto(module, profile="ort-cpu"), [feeds[str(n)] for n in names])
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_an_empty_bank_and_no_keys_change_nothing() -> None:
    expected = _out(_stack(), {"x0": X})
    empty = {name: value[:, :, :0] for name, value in _bank().items()}
    found = _out(_attached(3), {"x0": X, **empty})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(_out(_attached(0), {"x0": X}), expected)


def test_each_query_sees_the_keys_most_like_it() -> None:
    k = 2
    bank = _bank()
    module = _attached(k)
    regraft.apply(module, "canonicalize", check="off")
    first = _stack()
    for node in list(first.graph):
        if node.op.name == "attention":
            q, keys, values = (node.inputs[i] for i in range(3))
            break
    first.graph.set_outputs([("q", q), ("k", keys), ("v", values), ("a", node.output)])
    q, keys, values, _ = evaluate(first, {"x0": X}).values()
    mem_k, mem_v = (np.repeat(bank[f"{n}.0"], H // K, 1) for n in ("memory_keys", "memory_values"))
    keys, values = (np.repeat(x, H // K, 1) for x in (keys, values))
    alike = q @ (mem_k / np.linalg.norm(mem_k, axis=-1, keepdims=True)).swapaxes(-1, -2)
    rank = np.argsort(np.argsort(-alike, axis=-1), axis=-1)
    scores = np.concatenate([q @ mem_k.swapaxes(-1, -2), q @ keys.swapaxes(-1, -2)], -1) * D**-0.5
    seen = np.concatenate([rank < k, np.broadcast_to(np.tri(S, dtype=bool), (B, H, S, S))], -1)
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= weights.sum(-1, keepdims=True)
    expected = weights @ np.concatenate([np.repeat(mem_v, B, 0), values], 2)
    attached = _stack()
    regraft.apply(attached, f"attach-memory{{k={k},layers=0}}", check="off")
    made = next(node for node in attached.graph if node.op.name == "attention")
    attached.graph.set_outputs([("a", made.output)])
    feeds = {"x0": X, **{name: bank[name] for name in ("memory_keys.0", "memory_values.0")}}
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(_out(attached, feeds), expected, rtol=0, atol=bound)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="option `k`: -1 is not allowed"):
        _attached(-1)
    with pytest.raises(UsageError, match="no layer 7"):
        regraft.apply(_stack(), "attach-memory{layers=7}", check="off")
