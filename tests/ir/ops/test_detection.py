import numpy as np
import pytest
from onnx import TensorProto as T

from tests.conformance.agree import assert_agree, single


@pytest.mark.parametrize("opset", [10, 11])
@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("floor", [None, 0.4])
def test_non_max_suppression_agrees(opset, center, floor):
    rng = np.random.default_rng(1)
    inputs = {
        "boxes": rng.uniform(0, 1, (2, 40, 4)).astype(np.float32),
        "scores": rng.uniform(0, 1, (2, 3, 40)).astype(np.float32),
        "n": np.array([9], np.int64),
        "iou": np.array([0.3], np.float32),
        "floor": None if floor is None else np.array([floor], np.float32),
    }
    model = single(
        "NonMaxSuppression", inputs, 1, opset, output_dtypes=[T.INT64], center_point_box=center
    )
    assert_agree(model, inputs, rtol=0, atol=0)
