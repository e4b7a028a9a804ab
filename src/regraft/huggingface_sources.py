"""Hugging Face folders as sources and results: captured with transformers, written without it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.backends.huggingface import save_huggingface
from regraft.frontends.huggingface.checkpoint import is_folder, listed, open_checkpoint
from regraft.ir.errors import CheckError, InputError, UnsupportedError, UsageError
from regraft.ir.module import Module
from regraft.passes.check.module_check import check_module
from regraft.passes.check.runners import (
    EvalRunner,
    Runner,
    accepts,
    total_weight_bytes,
    unevaluable,
)
from regraft.passes.check.samples import generate_samples
from regraft.passes.protocol import Exact
from regraft.torch_sources import check_torch

if TYPE_CHECKING:
    from regraft.frontends.huggingface.load import Loaded
    from regraft.frontends.torch.call import Import

META = "huggingface"
FORM = re.compile(r"#(\w+)$")
"""`folder#decode` asks for the form of a decoder that takes and returns a cache."""
_HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")
_MAX_NAMED = 6
_MAX_VERIFIED_BYTES = 1 << 30
"""Larger models are written without running them."""


def folder_of(source: str | Path) -> tuple[Path, str] | None:
    """Returns the folder and the form that a source names, None when it is no such folder."""
    text = str(source)
    if is_folder(Path(text)):
        return Path(text), "prefill"
    found = FORM.search(text)
    if found is not None and is_folder(Path(text[: found.start()])):
        return Path(text[: found.start()]), found[1]
    return None


def source_folder(module: Module) -> Path | None:
    """Returns the folder that a module came from, while it is there."""
    noted = module.meta.get(META)
    folder = Path(noted["folder"]) if isinstance(noted, Mapping) else None
    return folder if folder is not None and folder.is_dir() else None


def hub_folder(name: str, *, with_code: bool = False) -> Path:
    """Returns the folder of `org/name` on the hub, downloaded where it is not yet.

    Args:
        name: Its name there.
        with_code: Whether Python files are downloaded too; they are never run here.

    Raises:
        InputError: When the hub does not have it or cannot be reached.
        UnsupportedError: When the hub's client is not installed.
        UsageError: For a name that cannot be one.
    """
    if _HUB_NAME.fullmatch(name) is None:
        raise UsageError(f"`hf:{name}` names no model of the hub", hint="write `hf:org/name`")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UnsupportedError(
            f"`hf:{name}` needs the client of the hub", hint="`pip install 'regraft[hf]'`"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
    if with_code:
        wanted.append("*.py")
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines() or [repr(error)]
        raise InputError(
            f"`hf:{name}` cannot be downloaded: {first[0]}",
            hint="check the name and the network, or give a local folder",
        ) from error


def check_transformers() -> None:
    """Checks that PyTorch and transformers are installed.

    Raises:
        UnsupportedError: When they are not.
    """
    check_torch()
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError("transformers is not installed", hint="`pip install 'regraft[hf]'`")


def open_folder(
    folder: Path,
    form: str = "prefill",
    *,
    trust_remote_code: bool = False,
    importers: tuple[Import, ...] = (),
) -> Loaded:
    """Captures the model of a folder; see `regraft.frontends.huggingface.load`."""
    open_checkpoint(folder)  # says what is wrong with the files before anything is imported
    check_transformers()
    from regraft.frontends.huggingface.load import load_folder  # takes seconds

    return load_folder(folder, form=form, trust_remote_code=trust_remote_code, importers=importers)


def save_folder(module: Module, folder: Path, *, verify: bool = True) -> list[Path]:
    """Writes a module into an existing folder, and runs what was written.

    Args:
        module: A module that came from a Hugging Face folder.
        folder: Where to write.
        verify: Whether to compare the written model with the module, where its weights take no
            more than 1 GiB. Where values were folded that the model must fold again, it always is.

    Raises:
        CheckError: When transformers computes something else from the folder.
        UnsupportedError: When the module is no model of its family any more.
    """
    check_transformers()
    from regraft.frontends.huggingface.load import expected_of, resolved_of  # takes seconds

    def expected(config: Mapping[str, Any]) -> Any:
        return expected_of(config, folder)

    def resolve(config: Mapping[str, Any]) -> Mapping[str, Any]:
        return resolved_of(config, folder)

    written = save_huggingface(module, folder, expected, resolve=resolve)
    missing = unevaluable(module)
    if written.doubts and missing:
        raise UnsupportedError(
            f"values of {listed(list(written.doubts))} were folded, and the module cannot run to "
            f"prove that a model of its family computes the same: no numpy meaning of {missing[0]}",
            hint="write the module before such passes, or with `--target torch`",
        )
    is_small = total_weight_bytes(module) <= _MAX_VERIFIED_BYTES
    if written.doubts or (verify and is_small and not missing):
        _verify(module, folder, written.doubts)
    return list(written.files)


def written_folder(folder: Path, module: Module) -> Runner:
    """Returns a runner of a written folder: the model as transformers loads it."""
    form = module.meta[META]["form"]
    return open_folder(folder, form).capture.runner(fast=False)


def _verify(module: Module, folder: Path, doubts: Mapping[str, str]) -> None:
    """Compares the written model with the module: tensors may fit and be used otherwise.

    Raises:
        CheckError: When they differ by more than rounding.
    """
    written = written_folder(folder, module)
    samples = generate_samples(module, accepts(written), max_samples=1)
    report = check_module(
        EvalRunner(module), EvalRunner(module, oracle=True), written, samples, contract=Exact()
    )
    if not report.ok:
        worst = max(report.outputs, key=lambda item: item.max_rel)
        raise CheckError(
            "the module computes something else than a model of its family with these weights: "
            f"`{worst.name}` differs by {worst.max_abs:.3g}"
            + "".join(f"\n  `{name}`: {why}" for name, why in [*doubts.items()][:_MAX_NAMED]),
            hint="a pass changed more than sizes: write it with `--target torch` or `ort-cpu`",
        )
