"""Models as people write them, all the way: capture, ONNX Runtime, generated module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch.utils import _pytree as pytree  # noqa: E402

import regraft  # noqa: E402
from regraft.backends.onnx import to_proto  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402
from regraft.backends.torch.executor import TorchRunner  # noqa: E402
from regraft.frontends.torch.capture import Capture, capture  # noqa: E402
from tests.frontends.torch.everyday_nets import NETS, Everyday  # noqa: E402
from tests.frontends.torch.oracle import compare, resized  # noqa: E402

CALLS = 2
"""A second call sees what the first one wrote to buffers."""


def _arguments(captured: Capture, item: Everyday, sizes: Mapping[str, int]) -> Any:
    """Returns the arguments at other sizes."""
    leaves, spec = pytree.tree_flatten(((), dict(item.kwargs)))
    for i, name in captured.imported.inputs.items():
        type_ = captured.module.input_types[name]
        leaves[i] = torch.from_numpy(resized(leaves[i].numpy(), type_, sizes))
    _, kwargs = pytree.tree_unflatten(leaves, spec)
    return kwargs


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("item", NETS, ids=lambda item: item.name)
def test_everyday_model_equals_the_original_in_both_runtimes(item: Everyday) -> None:
    torch.manual_seed(0)
    net = item.build().eval()
    captured = capture(net, (), item.kwargs, dynamic_shapes=item.axes or None)
    module = captured.module
    regraft.apply(module, "canonicalize")
    runtime, made = OrtRunner(to_proto(module)), regraft.to_torch(module)
    first = {state.input: np.array(module.weights[state.input].numpy()) for state in module.states}
    names = captured.imported.outputs
    for sizes in ({}, *item.sizes):
        kwargs = _arguments(captured, item, sizes)
        given = pytree.tree_leaves(((), kwargs))
        inputs = {name: given[i].numpy() for i, name in captured.imported.inputs.items()}
        original, runners = copy.deepcopy(net), (runtime, TorchRunner(made, module))
        states = [dict(first) for _ in runners]
        for _ in range(CALLS):
            with torch.no_grad():
                leaves = pytree.tree_leaves(original(**copy.deepcopy(kwargs)))
            for runner, state in zip(runners, states, strict=True):
                found = runner({**inputs, **state})
                state.update({each.input: found[each.output] for each in module.states})
                for i, name in names.items():
                    compare(found[name], leaves[i].numpy(), f"{name}, {sizes}")
