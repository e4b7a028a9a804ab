"""The generated models have the sizes they are named for, and ONNX Runtime runs them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import big, blocks, models


@pytest.mark.parametrize("count", [1, 20])
def test_stack_has_46_nodes_a_block(count):
    model = blocks.stack(count)
    onnx.checker.check_model(model)
    assert len(model.graph.node) == 46 * count == blocks.NODES_PER_BLOCK * count
    assert len({node.name for node in model.graph.node}) == 46 * count


def test_stack_blocks_have_weights_of_their_own():
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in blocks.stack(2).graph.initializer}
    assert not np.array_equal(weights["block0.up.weight"], weights["block1.up.weight"])


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (2, 7)])
def test_stack_runs_at_every_binding(batch, sequence):
    session = ort.InferenceSession(blocks.stack(3).SerializeToString())
    x = np.random.default_rng(0).standard_normal((batch, sequence, 64)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    assert np.abs(y - x).max() > 0.1


def test_big_model_lies_in_an_external_file_at_page_boundaries(tmp_path, monkeypatch):
    monkeypatch.setattr(big, "HIDDEN", 32)
    monkeypatch.setattr(big, "FFN", 64)
    monkeypatch.setattr(big, "BYTES_PER_BLOCK", 4 * (32 * 32 + 2 * 32 * 64))
    path = tmp_path / "model.onnx"
    size = big.write(path, 50_000)
    assert size >= 50_000
    assert size == (tmp_path / "model.onnx.data").stat().st_size
    referenced = onnx.load(path, load_external_data=False).graph.initializer
    offsets = [int(e.value) for w in referenced for e in w.external_data if e.key == "offset"]
    assert offsets == sorted(offsets)
    assert all(offset % big.ALIGNMENT == 0 for offset in offsets)
    (y,) = ort.InferenceSession(path).run(None, {"x": np.ones((1, 2, 32), np.float32)})
    assert np.isfinite(y).all()
    assert np.any(y)


def test_big_model_is_not_written_twice(tmp_path):
    path = tmp_path / "model.onnx"
    big.write(path, 1)
    before = path.with_name("model.onnx.data").stat().st_mtime_ns
    big.write(path, 1)
    assert path.with_name("model.onnx.data").stat().st_mtime_ns == before


@pytest.mark.parametrize("model", models.CORE, ids=lambda model: model.name)
def test_samples_are_deterministic_and_run(model):
    try:
        path = models.find(model)
    except models.ModelMissingError as missing:
        pytest.skip(str(missing))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options)
    for sample, again in zip(models.samples(model), models.samples(model), strict=True):
        assert all(np.array_equal(sample[name], again[name]) for name in sample)
        for output in session.run(None, sample):
            assert np.isfinite(output).all()
            assert np.any(output)
