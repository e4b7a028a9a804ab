"""Models of handwritten digits: two CNNs, and a ViT of `transformers`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

from transformers import ViTConfig, ViTForImageClassification  # noqa: E402

from benchmarks.small_models import digits  # noqa: E402

_BATCH = 64
_WEIGHTS = "model.safetensors"


class ConvBlock(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    """Two convolutions with batch norm and a shortcut, half as large and twice as wide."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(into, out, 1, 2, bias=False)
        self.bn3 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.bn3(self.shortcut(x)))


class DigitCnn(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    """`pixel_values` f32[B, 1, 28, 28] to `logits` f32[B, 10]; 75,000 parameters, 5.7 M MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1 = ConvBlock(16, 32)
        self.block2 = ConvBlock(32, 64)
        self.classifier = nn.Linear(64, digits.NUM_CLASSES)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(pixel_values)))
        x = self.block2(self.block1(x))
        return {"logits": self.classifier(x.mean((2, 3)))}


class DenseCnn(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    """`pixel_values` f32[B, 1, 28, 28] to `logits` f32[B, 10]; wide enough to gain from 8 bits.

    0.3 M parameters, 22 M MACs, 1 % of them in the stem.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, strides = (1, 32, 64, 64, 128, 128), (1, 2, 1, 2, 1)
        for into, out, stride in zip(channels, channels[1:], strides, strict=False):
            layers.append(nn.Conv2d(into, out, 3, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(128, digits.NUM_CLASSES)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.layers(pixel_values).mean((2, 3)))}


def make_vit() -> nn.Module:
    """Returns the untrained model: 49 patches of 4 x 4, 4 layers of 64, 4 heads of 16.

    0.14 M parameters.
    """
    return ViTForImageClassification(ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        image_size=digits.SIDE, patch_size=4, num_channels=1, num_labels=digits.NUM_CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))  # fmt: skip


def digit_loss(net: nn.Module, seed: int, step: int) -> Tensor:
    batch = digits.training_batch(seed, step, _BATCH)
    logits = net(torch.from_numpy(batch["pixel_values"]))["logits"]
    return nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"]))


def held_out() -> Iterator[digits.Batch]:
    """Yields the digits that were not trained on."""
    return digits.held_out(250)


def save_cnn(net: Any, folder: Path) -> None:
    """Saves the CNN's tensors."""
    save_file(net.state_dict(), folder / _WEIGHTS)


def load_cnn(folder: Path, make: type[nn.Module] = DigitCnn) -> nn.Module:
    """Returns a CNN with the tensors of a folder."""
    net = make()
    net.load_state_dict(load_file(folder / _WEIGHTS))
    return net.eval()


def save_vit(net: Any, folder: Path) -> None:
    """Saves the ViT as a folder of `transformers`, with what its processor does to an image."""
    net.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [digits.MEAN],
        "image_std": [digits.STD], "size": {"height": digits.SIDE, "width": digits.SIDE},
    }  # fmt: skip
    text = json.dumps(processor, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
