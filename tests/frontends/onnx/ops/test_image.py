"""Resize, grids and regions: ONNX Runtime, our files and the evaluator agree."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from regraft.frontends.onnx import load_onnx
from regraft.ir.dims import Dim, floordiv
from regraft.ir.evaluate import evaluate
from regraft.ir.ops.resize import resize
from tests.single_node import check_agreement, single_node

# interpolation weights in f32 at coordinates of tens: 16 units per weight and four weights
RTOL = 64 * float(np.finfo(np.float32).eps)
MODES = ["nearest", "linear", "cubic"]
COORDINATES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]


def image(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def f32(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


@pytest.mark.parametrize(("mode", "coordinates"), list(itertools.product(MODES, COORDINATES)))
@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize("scale", [(2.0, 2.0), (0.5, 2.0), (1.0, 3.0)])
def test_resize_by_scales_agrees(
    mode: str, coordinates: str, opset: int, scale: tuple[float, float]
) -> None:
    operands: list[Any] = [image(0, 1, 2, 6, 8), f32(), f32(1, 1, *scale)]
    for symbolic in (False, True):
        proto = single_node(
            "Resize", opset, operands, constant=(1, 2), symbolic=symbolic, mode=mode,
            coordinate_transformation_mode=coordinates,
        )  # fmt: skip
        check_agreement(proto, operands, rtol=RTOL, constant=(1, 2))


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", [*COORDINATES, "tf_half_pixel_for_nn"])
def test_resize_nearest_modes_agree(nearest: str, coordinates: str) -> None:
    x = image(0, 1, 1, 9, 10)
    for sizes in ((18, 5), (7, 13), (9, 20), (1, 30)):
        operands: list[Any] = [x, f32(), f32(), np.array([1, 1, *sizes])]
        proto = single_node(
            "Resize", 11, operands, constant=(1, 2, 3), mode="nearest", nearest_mode=nearest,
            coordinate_transformation_mode=coordinates,
        )  # fmt: skip
        check_agreement(proto, operands, rtol=0, constant=(1, 2, 3))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(3, 4), (12, 5), (7, 16)])
@pytest.mark.parametrize("exclude", [0, 1])
def test_resize_with_antialias_agrees(mode: str, sizes: tuple[int, int], exclude: int) -> None:
    operands: list[Any] = [image(0, 1, 2, 7, 9), None, None, np.array([1, 2, *sizes])]
    proto = single_node(
        "Resize", 18, operands, constant=(3,), mode=mode, antialias=1, exclude_outside=exclude
    )
    check_agreement(proto, operands, rtol=RTOL, constant=(3,))


@pytest.mark.parametrize(
    ("policy", "axes"),
    [
        *itertools.product(["stretch", "not_larger", "not_smaller"], [[2, 3], [3, 2]]),
        ("stretch", [-1, -2]),
    ],
)
def test_resize_with_axes_and_aspect_agrees(policy: str, axes: list[int]) -> None:
    x = image(0, 1, 2, 6, 8)
    operands: list[Any] = [x, None, None, np.array([9, 20])]
    for symbolic in (False, True):
        proto = single_node(
            "Resize", 18, operands, constant=(3,), symbolic=symbolic, mode="linear", axes=axes,
            keep_aspect_ratio_policy=policy,
        )  # fmt: skip
        module = check_agreement(proto, operands, rtol=RTOL, constant=(3,))
        node = next(node for node in module.graph if node.op is resize)
        assert node.attrs["axes"] == (2, 3)


@pytest.mark.parametrize(
    ("policy", "shape"), [("stretch", (9, 20)), ("not_larger", (9, 12)), ("not_smaller", (15, 20))]
)
def test_resize_keeps_the_aspect_over_negative_axes(policy: str, shape: tuple[int, int]) -> None:
    # the runtime does not find negative axes under a policy and resizes none, so that it is no
    # oracle here: the ratios are 20 / 8 = 2.5 and 9 / 6 = 1.5
    x = image(0, 1, 2, 6, 8)
    operands: list[Any] = [x, None, None, np.array([20, 9])]
    proto = single_node(
        "Resize", 18, operands, constant=(3,), axes=[-1, -2], keep_aspect_ratio_policy=policy
    )
    module = load_onnx(proto)
    assert module.graph.outputs[0].shape == (1, 2, *shape)
    (result,) = evaluate(module, {"x0": x}).values()
    assert result.shape == (1, 2, *shape)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_resize_of_a_region_agrees(mode: str) -> None:
    roi = f32(0, 0, 0.1, -0.3, 1, 1, 0.7, 0.8)
    operands: list[Any] = [image(0, 1, 1, 6, 8), roi, f32(), np.array([1, 1, 5, 7])]
    proto = single_node(
        "Resize", 13, operands, constant=(1, 2, 3), mode=mode, extrapolation_value=9.0,
        coordinate_transformation_mode="tf_crop_and_resize",
    )  # fmt: skip
    check_agreement(proto, operands, rtol=RTOL, constant=(1, 2, 3))


@pytest.mark.parametrize("position", [2, 3])
def test_resize_with_settings_of_run_time_agrees(position: int) -> None:
    setting: Any = f32(1, 1, 1.5, 0.5) if position == 2 else np.array([1, 2, 9, 5])
    operands: list[Any] = [image(0, 1, 2, 6, 8), None, None, None]
    operands[position] = setting
    operands = operands[: position + 1]
    proto = single_node("Resize", 13, operands, mode="linear")
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("constant", [(), (1,)])
@pytest.mark.parametrize("scale", [(2, 3), (0.4, 0.5), (0.4, 1.7), (1, 1)])
def test_resize_10_agrees(mode: str, constant: tuple[int, ...], scale: tuple[float, float]) -> None:
    operands: list[Any] = [image(0, 1, 2, 8, 9), f32(1, 1, *scale)]
    proto = single_node("Resize", 10, operands, constant=constant, mode=mode)
    check_agreement(proto, operands, rtol=RTOL, constant=constant)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_agrees(mode: str) -> None:
    x = image(0, 1, 2, 5, 4)
    proto = single_node("Upsample", 7, [x], mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
    check_agreement(proto, [x], rtol=RTOL)
    operands: list[Any] = [x, f32(1, 1, 2, 3)]
    for constant in ((), (1,)):
        proto = single_node("Upsample", 9, operands, constant=constant, mode=mode)
        check_agreement(proto, operands, rtol=RTOL, constant=constant)


@pytest.mark.parametrize("scale", [0.7, 0.35, 1.3])
def test_resize_size_is_the_runtimes_where_f32_decides(scale: float) -> None:
    operands: list[Any] = [image(0, 1, 1, 10, 20), f32(), f32(1, 1, scale, scale)]
    # linear: a nearest pixel at a tie of f32 coordinates would be another question
    proto = single_node("Resize", 13, operands, constant=(1, 2), mode="linear")
    check_agreement(proto, operands, rtol=RTOL, constant=(1, 2))


def test_resize_of_symbolic_sizes_is_exact_for_whole_and_unit_fraction_scales() -> None:
    operands: list[Any] = [image(0, 1, 1, 8, 8), f32(), f32(1, 1, 2, 0.5)]
    module = load_onnx(single_node("Resize", 13, operands, constant=(1, 2), symbolic=True))
    source, shape = module.graph.inputs[0].shape, module.graph.outputs[0].shape
    assert source is not None
    assert shape is not None
    assert shape == (*source[:2], source[2] * 2, floordiv(source[3], 2))
    operands[2] = f32(1, 1, 1.3, 1)
    module = load_onnx(single_node("Resize", 13, operands, constant=(1, 2), symbolic=True))
    odd = module.graph.outputs[0].shape
    assert odd is not None
    assert isinstance(odd[2], Dim)
    symbol = odd[2].as_symbol()
    assert symbol is not None
    assert symbol.defined


def test_resize_of_bytes_rounds() -> None:
    x = np.random.default_rng(0).integers(0, 255, (1, 1, 4, 4)).astype(np.uint8)
    operands: list[Any] = [x, f32(), f32(1, 1, 2, 2)]
    proto = single_node("Resize", 13, operands, constant=(1, 2), mode="nearest")
    check_agreement(proto, operands, rtol=0, constant=(1, 2))


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample_16_agrees(mode: str, padding: str, corners: int) -> None:
    grid = (np.random.default_rng(1).random((2, 4, 3, 2)).astype(np.float32) - 0.5) * 4
    operands: list[Any] = [image(0, 2, 3, 5, 6), grid]
    proto = single_node(
        "GridSample", 16, operands, symbolic=True, mode=mode, padding_mode=padding,
        align_corners=corners,
    )  # fmt: skip
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample_of_volumes_agrees(mode: str, padding: str) -> None:
    grid = (np.random.default_rng(1).random((1, 2, 3, 4, 3)).astype(np.float32) - 0.5) * 3
    operands: list[Any] = [image(0, 1, 2, 4, 5, 6), grid]
    proto = single_node("GridSample", 20, operands, symbolic=True, mode=mode, padding_mode=padding)
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 3, 4, 2)])
@pytest.mark.parametrize("constant", [(), (1,)])
def test_affine_grid_agrees(corners: int, size: tuple[int, ...], constant: tuple[int, ...]) -> None:
    rank = len(size) - 2
    operands: list[Any] = [image(0, 2, rank, rank + 1), np.array(size)]
    proto = single_node("AffineGrid", 20, operands, constant=constant, align_corners=corners)
    check_agreement(proto, operands, rtol=RTOL, constant=constant)


@pytest.mark.parametrize("seed", range(12))
def test_roi_align_agrees(seed: int) -> None:
    rng = random.Random(seed)
    corners = np.sort(np.random.default_rng(seed).random((5, 2, 2)) * 22 - 3, axis=1)
    operands: list[Any] = [
        image(seed, 2, 3, 8, 9),
        corners.reshape(5, 4).astype(np.float32),
        np.array([0, 1, 1, 0, 1]),
    ]
    attrs: dict[str, Any] = {
        "mode": rng.choice(["avg", "max"]), "sampling_ratio": rng.choice([0, 1, 2]),
        "output_height": 3, "output_width": 2, "spatial_scale": 0.5,
    }  # fmt: skip
    opset = rng.choice([10, 16])
    if opset == 16:
        attrs["coordinate_transformation_mode"] = rng.choice(["half_pixel", "output_half_pixel"])
    check_agreement(single_node("RoiAlign", opset, operands, **attrs), operands, rtol=RTOL)


def test_max_roi_pool_agrees() -> None:
    rois = f32(0, 0, 0, 9, 9, 1, 3, 2, 14, 9, 0, 5, 5, 5, 5, 1, -2, 1, 30, 4).reshape(4, 5)
    operands: list[Any] = [image(0, 2, 3, 8, 9), rois]
    proto = single_node("MaxRoiPool", 7, operands, pooled_shape=[3, 2], spatial_scale=0.5)
    check_agreement(proto, operands, rtol=0)


def test_image_decoder_is_opaque_and_kept() -> None:
    proto = single_node("ImageDecoder", 20, [np.zeros(8, np.uint8)])
    (node,) = load_onnx(proto).graph
    assert node.attrs["op_type"] == "ImageDecoder"


def test_resize_with_half_pixel_symmetric_agrees_with_the_reference() -> None:
    operands: list[Any] = [image(0, 1, 1, 7, 9), None, f32(1, 1, 0.6, 1.4)]
    proto = single_node(
        "Resize", 19, operands, constant=(2,), mode="linear",
        coordinate_transformation_mode="half_pixel_symmetric",
    )  # fmt: skip
    expected = ReferenceEvaluator(proto).run(None, {"x0": operands[0]})
    check_agreement(proto, operands, rtol=RTOL, constant=(2,), expected=list(expected))
