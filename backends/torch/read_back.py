"""`read_back`: stores the weights of a trained `nn.Module` in the module that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from regraft.backends.torch.states import held_states, hold
from regraft.backends.torch.tensors import array_from
from regraft.backends.torch.weight_plan import Slot, WeightPlan, plan_weights
from regraft.ir.derive import DerivedWeight, source_names
from regraft.ir.errors import InputError
from regraft.ir.module import Module
from regraft.ir.steps import Source, Tree
from regraft.ir.weights import ArrayWeight, Role

_WRAPPERS = ("module.", "_orig_mod.")
_MAX_NAMED = 6


def read_back(
    module: Module, net: nn.Module | Mapping[str, torch.Tensor], *, partial: bool = False
) -> list[str]:
    """Stores the parameters and buffers of a trained module, in place.

    Weights that did not change stay what they are (mapped files, recorded steps).

    Args:
        module: The module from which `to_torch` made `net`, or another with the same weights.
        net: The trained module, also within `DistributedDataParallel` or `torch.compile`; the
            original model of a captured module; or a `state_dict`.
        partial: Whether tensors may be missing; they stay what they are.

    Returns:
        The names of the checkpoint tensors that changed.

    Raises:
        InputError: When tensors are missing or of another shape; nothing is stored then.
    """
    state = _unwrapped(net.state_dict() if isinstance(net, nn.Module) else net)
    plan = plan_weights(module)
    for kept_state in held_states(module).values():
        hold(plan, module, kept_state)
    kept = [slot for slot in plan.slots.values() if slot.role is not Role.CONST]
    if partial:
        kept = [slot for slot in kept if _key(slot, plan, state) in state]
    _check(kept, plan, state)
    changed: dict[Tree, Tree] = {}
    names = []
    for slot in kept:
        array = array_from(state[_key(slot, plan, state)], slot.dtype)
        old = slot.weight.numpy()
        if np.array_equal(_bits(array), _bits(old)):
            continue
        name = plan.names.get(slot.path, slot.path)
        made_from = () if isinstance(slot.tree, Source) else tuple(source_names(name, slot.weight))
        changed[slot.tree] = Source(name, ArrayWeight(array, made_from))
        names.append(name)
    for stored, tree in plan.trees.items():
        new = _replaced(tree, changed)
        if new is not tree:
            # a tensor of another name keeps it: the next plan registers it where this one did
            if isinstance(new, Source) and new.name == stored:
                module.weights.set(stored, new.weight)
            else:
                module.weights.set(stored, DerivedWeight(new))
    return names


def _unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = dict(state)
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            if found and all(name.startswith(prefix) for name in found):
                found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _key(slot: Slot, plan: WeightPlan, state: Mapping[str, torch.Tensor]) -> str:
    """Returns the name of a slot in a `state_dict`: the checkpoint's own where paths differ."""
    name = plan.names.get(slot.path, slot.path)
    return slot.path if slot.path in state or name not in state else name


def _check(slots: list[Slot], plan: WeightPlan, state: Mapping[str, torch.Tensor]) -> None:
    problems = []
    for slot in slots:
        tensor = state.get(_key(slot, plan, state))
        if tensor is None:
            problems.append(f"`{slot.path}` is missing")
        elif tuple(tensor.shape) != slot.shape:
            problems.append(
                f"`{slot.path}` is {list(tensor.shape)}, the module has {list(slot.shape)}"
            )
    if problems:
        more = len(problems) - _MAX_NAMED
        text = "\n  ".join(problems[:_MAX_NAMED]) + (f"\n  and {more} more" if more > 0 else "")
        raise InputError(
            f"the trained module does not fit the module it is read back to:\n  {text}",
            hint="read back before passes rewrite the module, or make the net from it anew",
        )


def _replaced(tree: Tree, changed: Mapping[Tree, Tree]) -> Tree:
    """Returns a tree with subtrees replaced; the same object when there are none."""
    found = changed.get(tree)
    if found is not None:
        return found
    updates: dict[str, Any] = {}
    for item in fields(tree):
        value = getattr(tree, item.name)
        if item.name == "xs":
            parts = tuple(_replaced(x, changed) for x in value)
            if any(a is not b for a, b in zip(parts, value, strict=True)):
                updates["xs"] = parts
        elif isinstance(value, Tree):
            part = _replaced(value, changed)
            if part is not value:
                updates[item.name] = part
    return replace(tree, **updates) if updates else tree


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns the elements as bytes: NaN equals itself, and every element type compares."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
