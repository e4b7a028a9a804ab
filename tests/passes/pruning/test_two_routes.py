"""One model captured from PyTorch and imported from its ONNX file prunes alike (E5)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures PyTorch models")
pytest.importorskip("onnxscript", reason="exports PyTorch models to ONNX")

from torch import nn  # noqa: E402

import regraft  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from regraft.ir.module import Module  # noqa: E402
from regraft.passes.cleanup import Canonicalize  # noqa: E402
from regraft.passes.fusion import Fuse  # noqa: E402
from regraft.passes.protocol import Context  # noqa: E402
from regraft.passes.pruning import Prune  # noqa: E402

# PyTorch's exporter uses what PyTorch deprecates
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Convolutional(nn.Module):
    """Convolutions with a residual, a depthwise one, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.wide = nn.Conv2d(24, 40, 1)
        self.back = nn.Conv2d(40, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Any) -> Any:
        """Returns logits, f32[B, 5]."""
        h = self.norm(self.stem(x)).relu()
        h = h + self.back(self.wide(self.deep(h)).relu())
        return self.head(h.mean((2, 3)))


class Transformer(nn.Module):
    """An encoder layer with a classifier of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 48)
        self.qkv = nn.Linear(48, 3 * 48)
        self.out = nn.Linear(48, 48)
        self.norm = nn.LayerNorm(48)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Any) -> Any:
        """Returns logits, f32[B, 5]."""
        h = self.stem(x)
        batch, length, width = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(batch, length, 3, 4, 12).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        h = h + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        h = h + self.down(nn.functional.gelu(self.up(self.norm(h))))
        return self.head(h.mean(1))


MODELS = {"conv": (Convolutional, (2, 3, 8, 8)), "transformer": (Transformer, (2, 6, 10))}


def _pruned(module: Module, x: Any, target: str) -> tuple[Any, list[int]]:
    for item in (Canonicalize(), Fuse(), Canonicalize()):
        item.run(module, Context())
    result = Prune(target, normalization="mean").run(module, Context())
    inputs = {str(module.graph.inputs[0].name): x.numpy()}
    sizes = sorted(group["new_size"] for group in result.decisions["plan"]["groups"])
    return evaluate(module, inputs)[module.graph.output_names[0]], sizes


@pytest.mark.parametrize("target", ["flops:0.5", "bytes:0.7"])
@pytest.mark.parametrize("name", MODELS)
def test_both_routes_keep_the_same(name: str, target: str, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = tmp_path / "model.onnx"
    # its optimizer folds norms into convolutions, and other weights have other scores
    torch.onnx.export(model, (x,), str(file), dynamo=True, verbose=False, optimize=False)
    captured, sizes = _pruned(regraft.capture(model, (x,)), x, target)
    imported, other_sizes = _pruned(regraft.load(file), x, target)
    assert sizes == other_sizes
    # f32 sums in another order, some hundred terms deep
    assert np.abs(captured - imported).max() <= 2e-5 * np.abs(captured).max()
    with torch.no_grad():
        assert np.abs(captured - model(x).numpy()).max() > 1e-3 * np.abs(captured).max()
