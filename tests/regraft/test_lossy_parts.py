"""Pipelines with lossy passes: their exact parts are judged, and so are bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

import regraft
from regraft.conversion import convert
from regraft.conversion_options import ConvertOptions, ConvertResult
from regraft.ir.errors import CheckError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.manager import CheckMode
from regraft.passes.protocol import Context, Contract, Exact, Lossy, Pass, PassResult
from tests.cli.workplace import populate


def scale(module: Module, factor: float) -> PassResult:
    """Scales every weight with more than one axis."""
    for name in list(module.weights):
        weight = module.weights[name].numpy()
        if weight.ndim > 1:
            module.weights.set(name, ArrayWeight((weight * factor).astype(weight.dtype)))
    return PassResult(changed=True)


@dataclass(frozen=True)
class Wrong:
    """Promises to be exact and is not."""

    name: ClassVar[str] = "wrong"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        return scale(module, 3.0)


@dataclass(frozen=True)
class Trade:
    """Changes weights by one part in a thousand."""

    name: ClassVar[str] = "trade"
    contract: ClassVar[Contract] = Lossy("output")

    def run(self, module: Module, ctx: Context) -> PassResult:
        return scale(module, 1.001)


@dataclass(frozen=True)
class Bounded:
    """The same, within a bound."""

    bound: float = 0.1
    name: ClassVar[str] = "bounded"

    @property
    def contract(self) -> Contract:
        return Lossy("output", self.bound)

    def run(self, module: Module, ctx: Context) -> PassResult:
        return scale(module, 1.001)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    populate(tmp_path)
    return tmp_path / "model.onnx"


def judged(model: Path, *passes: Pass) -> ConvertResult:
    return convert(model, None, ConvertOptions(passes=passes, dry_run=True))


@pytest.mark.parametrize(
    "passes", [(Wrong(), Trade()), (Trade(), Wrong())], ids=["before", "after"]
)
def test_an_exact_pass_beside_a_lossy_one_is_judged(model: Path, passes: tuple[Pass, Pass]) -> None:
    with pytest.raises(CheckError, match=r"`wrong.*is not exact: output"):
        judged(model, *passes)


def test_what_is_lossy_is_measured(model: Path) -> None:
    result = judged(model, Trade())
    assert result.check.ok
    assert 1e-4 < max(diff.max_rel for diff in result.check.outputs) < 1e-2
    assert result.check.parts["after"].verified == "module"


def test_a_bound_is_kept(model: Path) -> None:
    assert judged(model, Bounded(0.1)).check.ok
    with pytest.raises(CheckError, match="output"):
        judged(model, Bounded(1e-5))


def test_bounds_of_passes_add_up(model: Path) -> None:
    # three changes of 1e-3 in a row are more than one of these bounds and less than all three
    assert judged(model, Bounded(1.1e-3), Bounded(1.1e-3), Bounded(1.1e-3)).check.ok


@dataclass(frozen=True)
class Look:
    """Keeps the samples that a pass gets."""

    keep: Callable[[Context], None]
    name: ClassVar[str] = "look"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        self.keep(ctx)
        return PassResult(changed=False)


@pytest.mark.parametrize("check", list(CheckMode))
def test_generated_samples_do_not_depend_on_checks(model: Path, check: CheckMode) -> None:
    seen: list[list[np.ndarray]] = []

    def keep(ctx: Context) -> None:
        seen.append([array for sample in ctx.probes for array in sample.values()])

    for mode in (CheckMode.MODULE, check):
        options = ConvertOptions(passes=[Look(keep)], check=mode, dry_run=True)
        convert(model, None, options)
    assert seen[0]
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


def test_apply_hands_generated_samples_to_passes(model: Path) -> None:
    counts: list[int] = []
    regraft.apply(regraft.load(model), [Look(lambda ctx: counts.append(len(ctx.probes)))])
    assert counts[0] > 0


@dataclass(frozen=True)
class Nothing:
    """Says that it trades quality and does not."""

    name: ClassVar[str] = "nothing"
    contract: ClassVar[Contract] = Lossy("output")

    def run(self, module: Module, ctx: Context) -> PassResult:
        return PassResult(changed=True)


def test_samples_that_do_not_reach_a_change_are_named(model: Path) -> None:
    assert "do not reach" in judged(model, Nothing()).check.note
    assert not judged(model, Trade()).check.note
    assert not judged(model, Trade()).check.judged


def test_a_source_whose_kernel_rounds_inputs_is_not_judged_by_exact_sums(tmp_path: Path) -> None:
    # ONNX Runtime rounds what it multiplies by 4-bit weights, the module does not: no error of ours
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=64, N=32, bits=4, block_size=32, accuracy_level=4,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    held = {
        "w": rng.integers(0, 255, (32, 2, 16)).astype(np.uint8),
        "s": np.full((32, 2), 0.01, np.float32),
    }
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 32])],
        [onnx.numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    file = tmp_path / "nbits.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), file)
    result = judged(file, Canonicalize(), Trade())
    assert result.check.ok
    assert "before" not in result.check.parts
