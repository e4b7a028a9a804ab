"""Importers with symbolic sizes: captured once, evaluated at other sizes against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures PyTorch functions")

import torch.nn.functional as F  # noqa: E402

from regraft.frontends.torch.capture import capture  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from tests.frontends.torch.calls import array_from_tensor  # noqa: E402
from tests.frontends.torch.tensors import floats  # noqa: E402

Function = Callable[..., Any]

# functions of x [B, S, 8], both sizes dynamic
FUNCTIONS: dict[str, Function] = {
    "reshape": lambda x: x.reshape(x.shape[0], -1, 2, 4).transpose(1, 2).flatten(2),
    "view_heads": lambda x: x.view(*x.shape[:-1], 2, 4).permute(0, 2, 1, 3),
    "expand": lambda x: x[:1].expand(x.shape[0], -1, -1) + x.new_zeros(x.shape[1], 1),
    "slice": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1) + x[:, -1:],
    "slice_step": lambda x: x[:, ::2],
    "select": lambda x: x[:, 0] + x[:, -1],
    "select_symbolic": lambda x: x.select(1, x.shape[1] - 1),
    "split": lambda x: x.split([x.shape[1] - 1, 1], 1),
    "chunk": lambda x: x.chunk(2, -1)[1],
    "roll": lambda x: x.roll((1, -2), (0, 2)).roll(-1, 1),
    "flip": lambda x: x.flip(1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad_symbolic": lambda x: F.pad(x, (0, 0, x.shape[1], 0)),
    "reflect": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_symbolic": lambda x: x[:, :1].repeat(1, x.shape[1], 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "arange": lambda x: torch.arange(x.shape[1])[None, :, None] * x,
    "arange_float": lambda x: torch.arange(x.shape[1], dtype=torch.float32),
    "arange_step": lambda x: torch.arange(0, 2 * x.shape[1], 2),
    "full": lambda x: torch.full((x.shape[1], 3), x.shape[0]),
    "full_like": lambda x: torch.full_like(x, 2.0) + torch.zeros(x.shape[1], 8),
    "eye": lambda x: torch.eye(x.shape[1]),
    "tril": lambda x: torch.tril(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)),
    "triu": lambda x: torch.full((x.shape[1], x.shape[1]), -1e9).triu(1),
    "scale_by_size": lambda x: x * x.shape[1] / x.shape[0] + x.shape[1],
    "mean": lambda x: x.mean(1),
    "variance": lambda x: x.var(1),
    "softmax": lambda x: (x @ x.transpose(1, 2)).softmax(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention_mask": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], torch.ones(x.shape[1], x.shape[1]).tril() > 0
    ),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "conv1d": lambda x: F.conv1d(x.transpose(1, 2), torch.ones(4, 8, 3), padding=1, stride=2),
    "conv_same": lambda x: F.conv1d(x.transpose(1, 2), torch.ones(4, 8, 3), padding="same"),
    # every example has a kernel of its own: as many groups as examples
    "conv_by_example": lambda x: F.conv2d(
        x[:, :2].reshape(1, -1, 4, 2), x[:, :, :6].mean(1).repeat(1, 6).reshape(-1, 2, 3, 2),
        x[:, 0, :3].flatten(), stride=(1, 2), padding=(2, 1), groups=x.shape[0],
    ),
    "conv_transpose": lambda x: F.conv_transpose1d(x.mT, torch.ones(8, 4, 3), stride=2),
    "average_pool": lambda x: F.avg_pool1d(x.mT, 3, 2, 1),
    "max_pool": lambda x: F.max_pool2d(x[:, None], (2, 1)),
    "adaptive_pool": lambda x: F.adaptive_avg_pool1d(x.mT, 1),
    "windows": lambda x: x.unfold(1, 3, 1),
    "windows_apart": lambda x: x.unfold(1, 2, 2),
    "index": lambda x: x[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]],
    "index_last": lambda x: x[torch.arange(x.shape[0]), x.sum(-1).argmax(-1)],
    "index_select": lambda x: x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1)),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "sort": lambda x: x.sort(1)[0],
    "cumsum": lambda x: x.cumsum(1),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, torch.zeros_like(x[:, :1]).long(), 2.0),
    "slice_scatter": lambda x: torch.slice_scatter(x, x[:, 1:] * 2, 1, 0, x.shape[1] - 1),
    "select_scatter": lambda x: torch.select_scatter(x, x[:, 1], 1, 0),
    "in_place_slice": lambda x: x.clone().index_fill_(2, torch.tensor([1]), 3.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, -1.0),
    "where": lambda x: torch.where(x > 0, x, x.new_zeros(())),
    "diagonal": lambda x: (x @ x.mT).diagonal(dim1=1, dim2=2),
    "diagonal_matrix": lambda x: torch.diag_embed(x[:, :, 0]),
    "meshgrid": lambda x: torch.meshgrid(
        torch.arange(x.shape[1]), torch.arange(x.shape[0]), indexing="ij"
    ),
    "interpolate": lambda x: F.interpolate(x.mT, scale_factor=2.0, mode="nearest"),
    "interpolate_strided": lambda x: F.interpolate(
        F.avg_pool2d(F.avg_pool2d(F.pad(x[:, None], (2, 2, 2, 2)), 3, 2, 1), 3, 2, 1),
        scale_factor=2.0,
    ),
    "interpolate_to": lambda x: F.interpolate(x.mT, size=x.shape[1] * 3, mode="linear"),
    "einsum": lambda x: torch.einsum("bsd,btd->bst", x, x),
    "matmul": lambda x: x @ torch.ones(8, 3),
    "top_k": lambda x: x.topk(1, dim=1).values,
    "unbind": lambda x: torch.stack(x.unbind(-1), 1),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
    "one_hot": lambda x: F.one_hot((x > 0).long(), 3),
    "glu": lambda x: F.glu(x),
}  # fmt: skip


class _Module(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_symbolic_sizes_give_the_results_of_other_sizes(name: str) -> None:
    module = _Module(FUNCTIONS[name]).eval()
    sizes = {0: torch.export.Dim("B", min=2, max=64), 1: torch.export.Dim("S", min=4, max=128)}
    captured = capture(module, (floats(3, 6, 8),), dynamic_shapes=(sizes,)).module
    (x,) = captured.graph.inputs
    assert x.shape is not None
    assert [isinstance(size, int) for size in x.shape] == [False, False, True]
    for shape in ((2, 4, 8), (5, 9, 8)):
        example = floats(*shape)
        with torch.no_grad():
            wanted = module(example)
        wanted = wanted if isinstance(wanted, tuple | list) else (wanted,)
        results = list(evaluate(captured, {str(x.name): example.numpy()}).values())
        assert len(results) == len(wanted)
        for got, each in zip(results, wanted, strict=True):
            expected = array_from_tensor(each)
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            scale = max(float(abs(expected).max()), 1.0)
            # sums of up to 9 x 8 products in f32, in another order
            assert (
                float(abs(got - expected).max()) <= 1e-5 * scale
                if got.dtype.kind == "f"
                else (got == expected).all()
            )
