"""Files of an output: what each target writes, and how the check runs what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.activations import Activations
from regraft.backends.huggingface.companions import copy_companions
from regraft.backends.onnx import PROFILES, Watch, save_onnx
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.huggingface.checkpoint import CONFIG
from regraft.huggingface_sources import (
    check_transformers,
    save_folder,
    source_folder,
    written_folder,
)
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.module import Module
from regraft.passes.check.runners import Runner
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.cleanup.subexpressions import merge_subexpressions
from regraft.passes.pipeline import suggest
from regraft.plugins import Extensions

if TYPE_CHECKING:  # importing it imports torch
    from regraft.backends.torch.emitter import Emit

TORCH = "torch"
TRITON = "triton"
HUGGING_FACE = "hf"
BUILT = (*PROFILES, TORCH, HUGGING_FACE, TRITON)
"""Targets that write files."""

_TORCH_SUFFIX = ".py"


def model_file(target: str) -> str:
    """Returns the name of the model's file in an output folder."""
    return {TORCH: "model.py", TRITON: "model.py", HUGGING_FACE: CONFIG}.get(target, "model.onnx")


def check_known(target: str) -> None:
    """Checks that there is such a target.

    Raises:
        UsageError: When there is none.
    """
    if target not in BUILT:
        raise UsageError(f"unknown target `{target}`", hint=suggest(target, BUILT))


def check_target(path: Path | None, target: str, aot: Sequence[str] = ()) -> None:
    """Checks before any work begins that a target can write to a place.

    Raises:
        UsageError: When Python source would go into another kind of file, or a folder into one.
        UnsupportedError: When what the target needs is not installed.
    """
    if aot and target != TRITON:
        raise UsageError(f"`--aot` compiles kernels, which target `{target}` has none of",
                         hint="use --target triton")  # fmt: skip
    if target == HUGGING_FACE:
        check_transformers()
        if path is not None and path.suffix in (".json", ".safetensors", ".onnx", ".py"):
            raise UsageError(
                f"target `hf` writes a folder, not `{path.name}`", hint=_without_suffix(path)
            )
    if target == TRITON:
        if path is not None and path.suffix:
            raise UsageError(
                f"target `triton` writes a folder, not `{path.name}`", hint=_without_suffix(path)
            )
        import_module("regraft.backends.torch")  # it says what is missing
        if find_spec("triton") is None:
            raise UnsupportedError(
                "Triton is not installed", hint='install it: `pip install "regraft[triton]"`'
            )
        if aot:
            from regraft.backends.triton.binaries import check_targets  # it imports Triton

            check_targets(aot)
    if target != TORCH:
        return
    import_module("regraft.backends.torch")  # it says what is missing
    if path is not None and path.suffix not in ("", _TORCH_SUFFIX):
        raise UsageError(
            f"target `torch` writes Python source, not `{path.name}`",
            hint="name a folder, or a file such as `model.py`",
        )


def _without_suffix(path: Path) -> str:
    return f"name one without a suffix, such as `{path.with_suffix('')}`"


def check_source(module: Module, target: str, extensions: Extensions) -> None:
    """Checks before any pass runs that a target can take what no pass replaces.

    Raises:
        UnsupportedError: Naming every operator without a form there.
    """
    if target in (TORCH, TRITON):
        # torch takes a second to import
        from regraft.backends.torch.emitter import EmitTable
        from regraft.backends.torch.prepare import check_emittable

        check_emittable(module, EmitTable(*_torch_families(extensions)))


def emit(
    module: Module,
    path: Path,
    *,
    target: str,
    opset: int | None,
    extensions: Extensions,
    watch: Watch,
    sample: Mapping[str, Any] | None = None,
    aot: Sequence[str] = (),
    calibration: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Writes the model's file and its weights beside it; returns the files.

    Args:
        module: The module.
        path: The model's file.
        target: What is written.
        opset: Emission opset of an ONNX target.
        extensions: Emitters, those of plugins among them.
        watch: Called once, before weights are written; see `save_onnx`.
        sample: Inputs by name for the self-test of a package.
        aot: GPUs that its kernels are compiled for.
        calibration: Inputs by name that its kernels are calibrated with.

    Raises:
        UnsupportedError: When the target cannot take the module.
    """
    if target not in PROFILES:
        watch(None)
    source = source_folder(module)
    if source is not None and path.name == model_file(target) and target != HUGGING_FACE:
        copy_companions(source, path.parent)  # an output folder takes the tokenizer along
    if target == TORCH:
        from regraft.backends.torch import save_torch  # torch takes a second to import

        return save_torch(module, path, families=_torch_families(extensions))
    if target == TRITON:
        from regraft.backends.triton.package import save_package  # so does Triton
        from regraft.backends.triton.unified_maximum import unified_maxima

        families = _torch_families(extensions)
        # what passes raised has tables of its own; queries and keys by one table are one kernel
        module = module.clone()
        merge_subexpressions(module.graph)
        drop_dead_code(module)
        maxima = unified_maxima(module, calibration, Activations()) if calibration else ()
        return save_package(
            module, path.parent, sample=sample, families=families, aot=aot, maxima=maxima
        )
    if target == HUGGING_FACE:
        return save_folder(module, path.parent)
    rows = extensions.onnx_emitters
    return save_onnx(module, path, profile=target, opset=opset, families=rows, watch=watch)


def described(folder: Path, target: str) -> dict[str, Any]:
    """Returns what a report says about the files of a target besides their size.

    Of a package of kernels: `kernels`, which of them it calls and what generated ones compute.
    """
    if target != TRITON:
        return {}
    return {"kernels": json.loads((folder / "partition.json").read_text(encoding="utf-8"))}


def _torch_families(extensions: Extensions) -> Sequence[tuple[Emit, ...]]:
    """Returns regraft's emitters to PyTorch and those of plugins.

    Raises:
        UsageError: When a plugin brings one for an operator that has one.
    """
    from regraft.backends.torch.ops import FAMILIES  # torch takes a second to import

    own = {row.spec for family in FAMILIES for row in family}
    for row in extensions.torch_emitters:
        if row.spec in own:
            raise UsageError(
                f"`{row.spec.name}` has an emitter to PyTorch already",
                hint="plugins add emitters, they replace none",
            )
    return (*FAMILIES, extensions.torch_emitters)


def written_runner(path: Path, module: Module) -> Runner:
    """Returns a runner of a written file.

    Args:
        path: The model's file.
        module: What was written.

    Raises:
        UnsupportedError: When its runtime does not load it.
    """
    if path.name == CONFIG:
        return written_folder(path.parent, module)
    if path.suffix != _TORCH_SUFFIX:
        return OrtRunner(path)
    from regraft.backends.torch.executor import TorchRunner, load_file

    if (path.parent / "__init__.py").is_file():
        from regraft.backends.triton.package import load_package

        return TorchRunner(load_package(path.parent), module)
    return TorchRunner(load_file(path), module)
