"""Models without parameters in memory: built on the meta device, then bound to mapped files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from regraft.frontends.huggingface.checkpoint import Checkpoint, listed
from regraft.frontends.huggingface.classes import Architecture
from regraft.frontends.huggingface.merged import MergedTensors
from regraft.frontends.torch.eager import tensor_from_array
from regraft.frontends.torch.tensors import DTYPES
from regraft.ir.errors import InputError, RegraftError, UnsupportedError
from regraft.ir.stacked import StackedWeight
from regraft.ir.weights import MappedWeight

_TORCH = {dtype: each for each, dtype in DTYPES.items()}
_MAX_NAMED = 12
_MAX_STACKED_BYTES = 1 << 33
"""Most bytes of experts that are put together in memory, for the model that is captured."""
_NOT_STORED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"num_batches_tracked$")
"""Tensors of older checkpoints that models compute by themselves."""


@contextmanager
def _meta_parameters() -> Iterator[None]:
    """Puts new parameters on the meta device; buffers, which models compute, stay what they are."""

    def move(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        handle.remove()


def build_empty(architecture: Architecture, dtype: torch.dtype | None = None) -> Any:
    """Returns the model in evaluation mode, its parameters without data.

    Raises:
        InputError: When the config does not make a model.
    """
    with _meta_parameters(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that are initialized without data
        try:
            model = architecture.cls._from_config(architecture.config, dtype=dtype)
        except RegraftError:
            raise
        except Exception as error:  # sizes that do not fit raise whatever the layer raises
            first = str(error).strip().splitlines() or [repr(error)]
            raise InputError(
                f"the config makes no `{architecture.cls.__name__}`: {type(error).__name__}: "
                f"{first[0]}"
            ) from error
    return model.eval()


@dataclass(frozen=True, slots=True)
class Expected:
    """The tensors that a model wants.

    Args:
        shapes: Sizes by name in its `state_dict`.
        tied: Names that stand for another one.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]


def expected_tensors(model: Any) -> Expected:
    """Returns the names and sizes of what a folder of the model must hold."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not _is_computed(model, name)
    }
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    return Expected(shapes, dict(tied))


@dataclass(frozen=True, slots=True)
class Bound:
    """A model that reads a checkpoint, and how names correspond.

    Args:
        model: The model.
        names: Name in the checkpoint by name in the model's `state_dict`.
        unexpected: Tensors of the checkpoint that the model has no place for.
        tensors: Those of the checkpoint, and stacks of experts that it stores one by one.
    """

    model: Any
    names: Mapping[str, str]
    unexpected: tuple[str, ...]
    tensors: Mapping[str, MappedWeight | StackedWeight]


def bind(architecture: Architecture, checkpoint: Checkpoint) -> Bound:
    """Returns the model with the checkpoint's tensors as parameters, memory-mapped.

    Raises:
        InputError: When tensors are missing or of another size; names all of them.
        UnsupportedError: When transformers would merge tensors of the checkpoint while it loads.
    """
    model = build_empty(architecture, _dtype_of(architecture, checkpoint))
    wanted = model.state_dict()
    names, unexpected, stacks = _names(model, wanted, checkpoint)
    tensors: dict[str, MappedWeight | StackedWeight] = {**checkpoint.tensors, **stacks}
    tied = dict(model.get_expanded_tied_weights_keys(all_submodels=True))
    missing = {name for name in wanted if name not in names and not _is_computed(model, name)}
    lacking = sorted(name for name in missing if not _is_tied(name, tied, names))
    if lacking:
        raise InputError(
            f"{len(lacking)} tensors of `{architecture.cls.__name__}` are missing in "
            f"`{checkpoint.folder}`: {listed(lacking)}"
            + (f"\n  it has no place for {listed(unexpected)}" if unexpected else ""),
            hint="the folder is not complete, or `architectures` names another class than it holds",
        )
    shapes = {name: tensors[given].shape for name, given in names.items()}
    wrong = [
        f"`{names[name]}` is {list(shape)}, the config says {list(wanted[name].shape)}"
        for name, shape in shapes.items()
        if shape != tuple(wanted[name].shape)
    ]
    if wrong:
        more = f"\n  and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        raise InputError(
            f"{len(wrong)} tensors do not fit the config:\n  "
            + "\n  ".join(wrong[:_MAX_NAMED]) + more,
            hint="`config.json` belongs to another checkpoint",
        )  # fmt: skip
    storages: dict[Any, Any] = {}
    for name, given in names.items():
        tensor = _tensor(tensors[given], storages)
        _assign(model, name, tensor.to(_dtype_in(model, name, wanted[name].dtype)))
    model.all_tied_weights_keys = tied
    model.tie_weights(missing_keys=set(missing), recompute_mapping=False)
    return Bound(model, names, tuple(unexpected), tensors)


def _dtype_of(architecture: Architecture, checkpoint: Checkpoint) -> torch.dtype:
    """Returns the element type that the config states, else that of the first float tensor."""
    stated = architecture.config.dtype
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    if isinstance(stated, torch.dtype):
        return stated
    floats = (w.dtype for w in checkpoint.tensors.values() if w.dtype.is_float)
    return _TORCH.get(next(floats, None), torch.float32)  # type: ignore[arg-type]  # None is no key


def _dtype_in(model: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the element type of a parameter: some stay f32 in a model of half precision."""
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype is torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    is_kept = dtype in (torch.float16, torch.bfloat16) and any(
        re.search(rf"(^|\.){re.escape(part)}(\.|$)", name) for part in kept
    )
    return torch.float32 if is_kept else dtype


def _names(
    model: Any, wanted: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[dict[str, str], list[str], dict[str, StackedWeight]]:
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if not isinstance(item, WeightRenaming)]
    ignored = [*_NOT_STORED, *(model._keys_to_ignore_on_load_unexpected or ())]
    names: dict[str, str] = {}
    unexpected: list[str] = []
    merged = MergedTensors()
    places = dict(wanted)
    for given in checkpoint.tensors:
        name, converter = rename_source_key(
            given, renamings, converters, model.base_model_prefix, places
        )
        if given in wanted:
            names[given] = given
        elif converter is not None:
            merged.add(given, name, converter, converters)
        elif name in wanted:
            names[name] = given
        elif not any(re.search(pattern, given) for pattern in ignored):
            unexpected.append(given)
    stacks = merged.stacks(checkpoint.tensors)
    if sum(stack.nbytes for stack in stacks.values()) > _MAX_STACKED_BYTES:
        merged.unknown += [each for stack in stacks.values() for each in stack.made_from]
    if merged.unknown:
        raise UnsupportedError(
            f"{len(merged.unknown)} tensors are merged by transformers while it loads: "
            f"{listed(merged.unknown)}",
            hint="`save_pretrained` with `save_original_format=False` writes them merged",
        )
    names.update((name, name) for name in stacks)
    return names, unexpected, stacks


def _is_computed(model: Any, name: str) -> bool:
    """Whether a model computes a tensor that folders need not hold."""
    ignored = [*_NOT_STORED, *(model._keys_to_ignore_on_load_missing or ())]
    return any(re.search(pattern, name) for pattern in ignored)


def _is_tied(name: str, tied: Mapping[str, str], names: Mapping[str, str]) -> bool:
    """Whether a tensor of the checkpoint stands for a missing one."""
    root = tied.get(name, name)
    group = {root, *(target for target, source in tied.items() if source == root)}
    return any(member in names for member in group)


def _tensor(weight: MappedWeight | StackedWeight, storages: dict[Any, Any]) -> torch.Tensor:
    """Returns a tensor that lies in the mapped file; one mapping per file serves all.

    Stacks of experts that the files hold one by one are read.
    """
    dtype = _TORCH[weight.dtype]
    if isinstance(weight, StackedWeight):
        return tensor_from_array(weight.numpy())
    if weight.nbytes == 0:
        return torch.zeros(weight.shape, dtype=dtype)
    if weight.offset % max(1, dtype.itemsize):
        return tensor_from_array(weight.numpy())  # kernels want elements aligned
    if weight.path not in storages:
        storages[weight.path] = np.memmap(weight.path, np.uint8, "r")
    count = int(np.prod(weight.shape, dtype=np.int64))
    with warnings.catch_warnings():
        # the file is not writable, and nothing writes to parameters here
        warnings.filterwarnings("ignore", message=".*not writable.*")
        flat = torch.frombuffer(storages[weight.path], dtype=dtype, count=count,
                                offset=weight.offset)  # fmt: skip
    return flat.reshape(weight.shape)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    scope, _, leaf = name.rpartition(".")
    owner = model.get_submodule(scope)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
