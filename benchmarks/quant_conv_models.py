"""Models of `quant_conv`: a dense CNN of digits that is trained here, MobileNetV2."""

from __future__ import annotations

from functools import partial

from benchmarks.small_models import Kind, SmallModel, digits, get_kind, vision
from benchmarks.small_models.training import Schedule

DENSE = Kind(
    "digit-dense-cnn", 1, vision.DenseCnn, vision.digit_loss, Schedule(350, 4e-3), digits.digest,
    vision.held_out, vision.save_cnn, partial(vision.load_cnn, make=vision.DenseCnn),
)  # fmt: skip


def dense() -> SmallModel:
    """Returns the dense CNN; the first time, trains it: two minutes of one core."""
    return get_kind(DENSE)
