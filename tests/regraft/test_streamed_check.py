"""The check of a model whose weights do not fit the budget: streamed, beside the emission."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import regraft
from regraft import emission
from regraft.backends.onnx import save_onnx, storage
from regraft.checking import _OneBlasThread
from regraft.ir.constants import weight
from regraft.ir.errors import CheckError, RegraftError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.protocol import Context, Exact, PassResult
from tests.robustness.build import graph, info, model, node
from tests.robustness.build import weight as initializer

TINY = 1 << 12
"""A budget that none of the models here fits with the copies of a runtime."""


@dataclass(frozen=True, slots=True)
class Spoil:
    """A pass that claims to be exact and negates a weight."""

    name: ClassVar = "spoil"
    contract: ClassVar = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Negates the first weight."""
        name = next(n.attrs["name"] for n in module.graph.walk() if n.op is weight)
        module.weights.set(name, ArrayWeight(-module.weights[name].numpy()))
        return PassResult(True)


def product() -> bytes:
    made = graph(
        [node("MatMul", "x w", "h"), node("Relu", "h", "y")],
        inputs=[info("x", ("B", 16))],
        outputs=[info("y", None)],
        initializers=[initializer("w", (16, 48))],
    )
    return model(made).SerializeToString()


def test_a_streamed_check_finds_a_wrong_pass(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(product())
    with pytest.raises(CheckError, match="output `y`"):
        regraft.convert(
            tmp_path / "m.onnx", tmp_path / "out", passes=[Spoil()], max_memory_bytes=TINY
        )
    assert not (tmp_path / "out").exists()


def test_a_streamed_check_is_a_check_of_the_module(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(product())
    done = regraft.convert(tmp_path / "m.onnx", tmp_path / "out", max_memory_bytes=TINY)
    assert done.check.verified == "module"
    assert done.check.num_samples == 1


def test_a_size_that_does_not_run_is_given_up_for_one_that_does(tmp_path: Path) -> None:
    made = graph(
        [node("Reshape", "x shape", "h"), node("MatMul", "h w", "y")],
        inputs=[info("x", (1, "N"))],
        outputs=[info("y", None)],
        initializers=[initializer("w", (16, 48))],
    )
    shape = made.initializer.add()
    shape.name, shape.data_type = "shape", 7
    shape.dims.append(2)
    shape.raw_data = np.array([-1, 16], np.int64).tobytes()
    (tmp_path / "m.onnx").write_bytes(model(made).SerializeToString())
    done = regraft.convert(tmp_path / "m.onnx", tmp_path / "out", max_memory_bytes=TINY)
    assert done.check.verified == "module"
    assert done.check.bindings[0]["N"] % 16 == 0


@pytest.fixture
def with_data_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of any model go into a data file, as those of a large one do."""
    monkeypatch.setattr(emission, "save_onnx", partial(save_onnx, external_above=0))


@pytest.mark.usefixtures("with_data_file")
def test_a_streamed_check_passes_with_weights_read_from_the_written_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(product())
    done = regraft.convert(tmp_path / "m.onnx", tmp_path / "out", max_memory_bytes=TINY)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == 16 * 48 * 4
    assert done.check.verified == "module"


@pytest.mark.usefixtures("with_data_file")
def test_a_streamed_check_finds_wrong_bytes_in_the_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_zeros(file: BinaryIO, part: memoryview) -> None:
        file.write(bytes(len(part)))

    monkeypatch.setattr(storage, "_write_all", write_zeros)
    (tmp_path / "m.onnx").write_bytes(product())
    with pytest.raises(CheckError, match="output `y`"):
        regraft.convert(tmp_path / "m.onnx", tmp_path / "out", max_memory_bytes=TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("with_data_file")
def test_a_full_disk_ends_the_streamed_check_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: BinaryIO, part: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_write_all", refuse)
    (tmp_path / "m.onnx").write_bytes(product())
    with pytest.raises(RegraftError, match="disk is full"):
        regraft.convert(tmp_path / "m.onnx", tmp_path / "out", max_memory_bytes=TINY)
    assert not (tmp_path / "out").exists()


def test_blas_has_its_threads_back_when_the_last_has_left() -> None:
    def num_threads() -> set[int]:
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        limits = _OneBlasThread()
        limits.__enter__()
        limits.__enter__()
        limits.__exit__(None, None, None)  # the reference ends while the check goes on
        assert num_threads() == {1}
        limits.__exit__(None, None, None)
        assert num_threads() == {2}
