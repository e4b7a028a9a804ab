"""Operators in PyTorch: values, element types, gradients and export, by every attribute variant."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import dtype_of
from regraft.soundness import Sample, make_node
from tests.backends.torch.models import torch
from tests.backends.torch.samples import samples_of

from regraft.backends.torch import to_torch  # isort: skip  # needs torch
from regraft.backends.torch.executor import TorchRunner  # isort: skip

Array = np.ndarray[Any, Any]

SPECS = [spec for spec in OPS.values() if samples_of(spec) and not spec.num_bodies]
_READS_DATA = {
    "compress": "the condition decides the size",
    "non_zero": "the elements decide the size",
    "unique": "the elements decide the size",
    "non_max_suppression": "the boxes decide the size",
    "roi_align": "the size of a region decides the number of samples",
    "max_roi_pool": "the size of a region decides the bins",
}
_NO_GRADIENT = {
    "matmul_integer": "integers",
    "conv_integer": "integers",
    "eye_like": "reads the shape alone",
    "cast": "to another type",
    "bitcast": "to another type",
    "stop_gradient": "that is what it does",
    "dequantize": "f32 whatever the operands are",
    "max_roi_pool": "regions are rounded",
}
_NO_GRADIENT_OF = {  # PyTorch's own have none either
    "batch_norm": {"x3", "x4"},
    "nll_loss": {"x2"},
    "roi_align": {"x1"},
}
_DOMAINS = {
    "log": (0.1, 2.0),
    "sqrt": (0.1, 2.0),
    "pow": (0.5, 2.0),
    "reduce_log_sum": (0.1, 2.0),
    "asin": (-0.9, 0.9),
    "acos": (-0.9, 0.9),
    "atanh": (-0.9, 0.9),
    "acosh": (1.1, 3.0),
}
"""Where an operator of real numbers is defined."""
_NO_F64 = frozenset({"dequantize", "quantize", "dynamic_quantize"})  # computed in f32
_RANDOM = frozenset({"random_normal", "random_uniform", "multinomial", "bernoulli"})


def _build(spec: OpSpec, sample: Sample, dtype: Any) -> tuple[Module, dict[str, Array]]:
    rng = np.random.default_rng(len(spec.name))
    arrays = [None if d is None else np.asarray(d(rng, "mixed", dtype)) for d in sample.operands]
    node = make_node(spec, arrays, sample.attrs, sample.num_outputs)
    graph = node.graph
    assert graph is not None
    graph.set_outputs([(f"y{i}", value) for i, value in enumerate(node.outputs)])
    inputs = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
    return Module(graph, spec.name), inputs


def _cases() -> list[Any]:
    return [
        pytest.param(spec, sample, id=f"{spec.name}-{i}")
        for spec in SPECS
        for i, sample in enumerate(samples_of(spec))
        if spec.name not in _RANDOM
    ]


def _assert_close(found: Array, want: Array, eps: float, what: str) -> None:
    assert found.shape == want.shape, what
    assert dtype_of(found) is dtype_of(want), what
    if want.dtype.kind in "iub":
        assert np.array_equal(found, want), what
        return
    a, b = found.astype(np.float64), want.astype(np.float64)
    finite = np.abs(b[np.isfinite(b)])
    # sums of up to some dozen terms in another order: errors scale with the largest of them
    np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps * finite.max(initial=1.0))


@pytest.mark.parametrize(("spec", "sample"), _cases())
def test_values_are_those_of_the_evaluator(spec: OpSpec, sample: Sample) -> None:
    for dtype in (np.float32, np.float64):
        if dtype is np.float64 and spec.name in _NO_F64:
            continue
        module, inputs = _build(spec, sample, dtype)
        want = evaluate(module, inputs)
        got = TorchRunner(to_torch(module), module)(inputs)
        for name, expected in want.items():
            _assert_close(got[name], expected, float(np.finfo(dtype).eps), f"{name} in {dtype}")


def _is_differentiable(spec: OpSpec, inputs: dict[str, Array]) -> bool:
    discrete = spec.traits & Trait.DISCRETE and spec.name not in ("top_k", "moe", "mod")
    floats = any(array.dtype == np.float64 for array in inputs.values())
    return floats and not discrete and spec.name not in _NO_GRADIENT


@pytest.mark.parametrize(("spec", "sample"), _cases())
def test_gradients_match_finite_differences(spec: OpSpec, sample: Sample) -> None:
    module, inputs = _build(spec, sample, np.float64)
    if not _is_differentiable(spec, inputs):
        pytest.skip("not differentiable")
    if not any(v.dtype is not None and v.dtype.is_float for v in module.graph.outputs):
        pytest.skip("no float result")
    net = to_torch(module)
    if spec.name in _DOMAINS:
        rng = np.random.default_rng(0)
        low, high = _DOMAINS[spec.name]
        inputs = {name: np.asarray(rng.uniform(low, high, x.shape)) for name, x in inputs.items()}
    fixed = _NO_GRADIENT_OF.get(spec.name, set())
    tensors = [
        torch.from_numpy(array.copy()).requires_grad_(
            array.dtype == np.float64 and name not in fixed
        )
        for name, array in inputs.items()
    ]

    def run(*arguments: Any) -> Any:
        results = net(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(x for x in results if x.dtype == torch.float64)

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_half_precision_keeps_its_type(spec: OpSpec) -> None:
    """Values within what rounding at each step inside an operator may change."""
    if spec.name in _RANDOM or spec.traits & Trait.DISCRETE:
        pytest.skip("choices change")
    if spec.name in ("det", "dft", "stft"):
        pytest.skip("PyTorch has no kernel in bf16")
    bf16 = ml_dtypes.bfloat16
    module, inputs = _build(spec, samples_of(spec)[0], bf16)
    want = evaluate(module, inputs)
    got = TorchRunner(to_torch(module), module)(inputs)
    for name, expected in want.items():
        _assert_close(got[name], expected, float(ml_dtypes.finfo(bf16).eps) / 16, name)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_exported_program_gives_the_same(spec: OpSpec) -> None:
    if spec.name in _READS_DATA:
        pytest.skip(_READS_DATA[spec.name])
    module, inputs = _build(spec, samples_of(spec)[0], np.float32)
    net = to_torch(module)
    tensors = tuple(torch.from_numpy(array.copy()) for array in inputs.values())
    program = torch.export.export(net, tensors, strict=False)
    if spec.name in _RANDOM:
        return
    for found, want in zip(_flat(program.module()(*tensors)), _flat(net(*tensors)), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_compiler_captures_one_graph(spec: OpSpec) -> None:
    if spec.name in _READS_DATA or spec.name in _RANDOM:
        pytest.skip(_READS_DATA.get(spec.name, "random"))
    module, inputs = _build(spec, samples_of(spec)[0], np.float32)
    net = to_torch(module)
    tensors = tuple(torch.from_numpy(array.copy()) for array in inputs.values())
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        pairs = zip(_flat(compiled(*tensors)), _flat(net(*tensors)), strict=True)
    for found, want in pairs:
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6, equal_nan=True)


def _flat(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def test_every_operator_has_a_form() -> None:
    from regraft.backends.torch.control import STATEMENTS
    from regraft.backends.torch.emitter import EmitTable
    from regraft.backends.torch.ops import FAMILIES

    table = EmitTable(*FAMILIES)
    constants = {"literal", "weight", "opaque"}
    missing = [
        name
        for name, spec in OPS.items()
        if table.find(spec) is None
        and spec.body is None  # is written out in operators that have a form
        and spec not in STATEMENTS
        and name not in constants
    ]
    assert missing == []
