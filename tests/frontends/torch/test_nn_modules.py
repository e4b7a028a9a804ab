"""Every module class of `torch.nn`: captured, in ONNX Runtime, and back as a PyTorch module."""

from __future__ import annotations

import inspect
import logging
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="captures are compared with PyTorch")

import torch
from torch import nn
from torch.utils import _pytree as pytree

import regraft
from regraft.ir.errors import InputError, UnsupportedError
from tests.frontends.torch.nn_modules import (
    IN_TORCH_ALONE,
    NOT_CALLED,
    REFUSED,
    USES,
    Use,
)
from tests.frontends.torch.oracle import check_capture


def test_every_class_is_used() -> None:
    classes = {
        name
        for name, item in inspect.getmembers(nn, inspect.isclass)
        if issubclass(item, nn.Module)
    }
    assert classes == {use.kind for use in USES} | set(NOT_CALLED)


def _made(item: Use) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of lazy modules and deprecated classes
        net = item.make().eval()
        net(*item.args)  # lazy modules learn their sizes
    return net


@pytest.mark.parametrize("item", [use for use in USES if use.kind not in REFUSED], ids=str)
@pytest.mark.filterwarnings("ignore")  # of deprecated classes
def test_module_equals_the_original_in_both_runtimes(item: Use, tmp_path: Path) -> None:
    net = _made(item)
    if item.kind in IN_TORCH_ALONE:
        module = regraft.capture(net, item.args)
        with pytest.raises(UnsupportedError, match="operators of PyTorch have no ONNX form"):
            regraft.save(module, tmp_path / "m.onnx")
    else:
        module = check_capture(net, item.args, folder=tmp_path).module
    made = regraft.to_torch(module)
    with torch.no_grad():
        expected, found = net(*item.args), made(*item.args)
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    for mine, its in pairs:
        torch.testing.assert_close(mine, its)
    state = net.state_dict()
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("item", [use for use in USES if use.kind in REFUSED], ids=str)
def test_module_that_torch_export_refuses(item: Use) -> None:
    logging.disable(logging.ERROR)  # PyTorch prints the graph of a failed export
    try:
        with pytest.raises(InputError, match=REFUSED[item.kind]) as caught:
            regraft.capture(_made(item), item.args)
    finally:
        logging.disable(logging.NOTSET)
    assert "torch" in str(caught.value.hint)
