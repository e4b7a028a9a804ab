"""Weights that are divided among processes (FSDP2): each holds a part, and its optimizer state.

The whole of a part of the net is together while that part runs, forwards and backwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList


def divide(net: nn.Module, device: str, processes: int) -> None:
    """Divides the parameters of a net among all processes, in place.

    Every generated class is gathered by itself, the innermost first; what is read from several of
    them is gathered with the whole net.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes a second

    mesh = init_device_mesh(device.partition(":")[0], (processes,))
    for module in reversed([each for each in net.modules() if _is_part(each)]):
        if module is not net and not _shares(module, net):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)


def put_together(net: nn.Module) -> None:
    """Makes divided parameters ordinary ones again, in place; all processes have to."""
    made: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if _is_divided(parameter):
                made.setdefault(
                    id(parameter),
                    nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad),
                )
                module.register_parameter(name, made[id(parameter)])


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor as one process would have it; of a divided one, all processes have to."""
    return tensor.detach().full_tensor() if _is_divided(tensor) else tensor.detach()


def divided_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns a whole tensor in the form of a parameter of its shape."""
    if not _is_divided(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def _is_divided(tensor: Tensor) -> bool:
    # a `DTensor`, the import of which takes a second
    return hasattr(tensor, "full_tensor")


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer as one process would have it."""
    state = optimizer.state_dict()
    each = {idx: {key: _plain(item) for key, item in found.items()}
            for idx, found in state["state"].items()}  # fmt: skip
    return {**state, "state": each}


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what `whole_state` returned, divided as the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    each = {
        idx: {
            key: divided_like(item, parameters[idx]) if isinstance(item, Tensor) else item
            for key, item in found.items()
        }
        for idx, found in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": each})


def _plain(item: Any) -> Any:
    return whole(item) if isinstance(item, Tensor) else item


def _is_part(module: nn.Module) -> bool:
    """Returns whether a module is called, not only a place of parameters."""
    runs = type(module).forward is not nn.Module.forward
    return (
        runs
        and not isinstance(module, ParametrizationList)
        and next(module.parameters(), None) is not None
    )


def _shares(module: nn.Module, net: nn.Module) -> bool:
    """Returns whether a parameter of a module stands elsewhere in the net as well."""
    everywhere, inside = (
        Counter(id(p) for _, p in each.named_parameters(remove_duplicate=False))
        for each in (net, module)
    )
    return any(everywhere[key] != count for key, count in inside.items())
