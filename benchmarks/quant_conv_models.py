"""Models of `quant_conv`: a dense CNN of digits that is trained here, MobileNetV2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks.fixtures import vision_ops
from benchmarks.models import find
from benchmarks.quant_encoder_data import FOLDER

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

from benchmarks.prune_trained_torch import MOBILENET, MORE_PHOTOS, PHOTOS, SIDE  # noqa: E402
from benchmarks.small_models import Kind, SmallModel, digits, get_kind, vision  # noqa: E402
from benchmarks.small_models.training import Schedule  # noqa: E402

Array = np.ndarray[Any, Any]

_CALIBRATION = 256
_SEEN = ("astronaut.png", "coffee.png", "rocket.jpg", "retina.jpg", "grass.png", "camera.png",
         "gravel.png", "horse.png", "cell.png")  # fmt: skip
_UNSEEN = ("chelsea.png", "motorcycle_left.png", "hubble_deep_field.jpg", "color.png", "brick.png",
           "coins.png", "ihc.png", "clock_motion.png", "moon.png")  # fmt: skip
_LINE_HEIGHT = 48
_PAGE_LINES = ((10, 37), (48, 66), (65, 84), (83, 105), (100, 122), (117, 138), (168, 191))
"""Rows of pixels of the lines of text in scikit-image's `page.png`."""

DENSE = Kind(
    "digit-dense-cnn", 1, vision.DenseCnn, vision.digit_loss, Schedule(350, 4e-3), digits.digest,
    vision.held_out, vision.save_cnn, partial(vision.load_cnn, make=vision.DenseCnn),
)  # fmt: skip


def dense() -> SmallModel:
    """Returns the dense CNN; the first time, trains it: two minutes of one core."""
    return get_kind(DENSE)


@dataclass(frozen=True, slots=True)
class Photos:
    """Crops of photographs, f32[1, 3, 224, 224] each.

    Args:
        calibration: For ranges and budgets.
        test: Of other photographs.
    """

    calibration: list[Array]
    test: list[Array]


def photos(count: int, *, seed: int = 0) -> Photos:
    """Returns crops at random places and scales, half of them mirrored, as ImageNet takes them.

    Half of the photographs are for calibration: every second of ImageNet, and of scikit-image.
    """
    from PIL import Image  # comes with torchvision

    folder = find(PHOTOS).parent
    others = sorted(find(MORE_PHOTOS).parent.glob("imagenet_*.jpg"))
    rng = np.random.default_rng(seed)
    found = []
    for idx, (names, size) in enumerate(((_SEEN, _CALIBRATION), (_UNSEEN, count))):
        files = [*others[idx::2], *(folder / name for name in names)]
        images = [Image.open(files[i]).convert("RGB") for i in rng.permutation(len(files))]
        # photograph by photograph: what is held back of them is other photographs, too
        found.append([_crop(images[i * len(images) // size], rng) for i in range(size)])
    return Photos(*found)


def _crop(image: Any, rng: np.random.Generator) -> Array:
    side = int(min(image.size) * rng.uniform(0.5, 1.0))
    left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
    crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    pixels = np.asarray(crop, np.float32) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def mobilenet() -> Path:
    """Returns the file of torchvision's MobileNetV2 with its trained weights, norms folded."""
    path = FOLDER / "mobilenet.onnx"
    if path.exists():
        return path
    import torch
    import torchvision

    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(find(MOBILENET), weights_only=True))
    module = regraft.capture(model.eval(), (torch.zeros(1, 3, SIDE, SIDE),))
    regraft.apply(module, "canonicalize,fuse", check="off")
    FOLDER.mkdir(parents=True, exist_ok=True)
    regraft.save(module, path, target="ort-cpu")
    return path


def text_lines() -> list[Array]:
    """Returns the lines of a photographed page as the recognizer takes them, f32[1, 3, 48, W]."""
    from PIL import Image

    image = Image.open(find(PHOTOS).parent / "page.png").convert("L")
    found = []
    for top, bottom in _PAGE_LINES:
        line = image.crop((0, top, image.size[0], bottom))
        width = round(line.size[0] * _LINE_HEIGHT / line.size[1])
        resized = line.resize((width, _LINE_HEIGHT), Image.Resampling.BICUBIC).convert("RGB")
        pixels = np.asarray(resized, np.float32) / 127.5 - 1
        found.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    return found


def read(scores: Array, characters: list[str]) -> str:
    """Returns what the scores f32[T, classes] of a line say: the best path, repeats merged."""
    best = scores.argmax(-1)
    kept = [k for idx, k in enumerate(best) if k and (idx == 0 or best[idx - 1] != k)]
    return "".join(characters[k] for k in kept)
