"""Runs `torch.export` for a capture: evaluation mode, no decomposition, readable errors."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from regraft.frontends.torch.errors import explain_export_error, no_data_error
from regraft.frontends.torch.experts import static_experts
from regraft.frontends.torch.recurrent import whole_recurrences
from regraft.ir.errors import InputError


@contextlib.contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Sets evaluation mode, and restores the mode of every submodule afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def named_keywords(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Gives the keywords that a forward takes as `**kwargs` parameters of their own.

    An export loses the dynamic axes of the others.
    """
    signature = inspect.signature(module.forward)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {parameter.name for parameter in kept}
    more = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY) for k in kwargs if k not in names]
    if not more or len(kept) == len(signature.parameters):
        yield
        return
    original = module.forward

    def forward(*args: Any, **keywords: Any) -> Any:
        return original(*args, **keywords)

    forward.__signature__ = signature.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]  # read by `inspect`
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def export_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
) -> torch.export.ExportedProgram:
    """Returns the program of a module in evaluation mode, not decomposed.

    Raises:
        InputError: When the module cannot be exported as it is; names the user's line.
    """
    _check_data(module, args, kwargs)
    args, kwargs = _told_apart(tuple(args), dict(kwargs))
    with evaluation_mode(module), static_experts(module), whole_recurrences(module):
        try:
            return torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        except Exception as error:
            raise explain_export_error(error, module) from error


def _check_data(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Checks that no tensor is on the meta device: an export next to others says it badly.

    Raises:
        InputError: For one that is.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise no_data_error(empty)
    leaves = tree_leaves((tuple(args), dict(kwargs)))
    if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves):
        raise InputError(
            "an example argument is a tensor without data (meta)",
            hint="give tensors with data: `torch.zeros_like(x, device='cpu')`",
        )


def _told_apart(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns arguments of which no two are one tensor: the export takes those for one input."""
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if len({id(x) for x in leaves}) == len(leaves):
        return args, kwargs
    seen: set[int] = set()

    def own(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or id(x) not in seen:
            seen.add(id(x))
            return x
        return x.detach().clone()

    apart: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(own, (args, kwargs))
    return apart
