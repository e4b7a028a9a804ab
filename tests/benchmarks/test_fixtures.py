"""The corpus for structure recognition loads without PyTorch, is as stated, and runs."""

import hashlib
import zlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.fixtures import hand, store
from benchmarks.fixtures.truth import Norms, from_document
from benchmarks.fixtures.weights import Recipe, pack, unpack

NAMES = store.names()
SAMPLED = NAMES[::16]
MAX_BYTES = 12_000_000


def _run(name, sizes=None):
    model = store.load(name)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, store.samples(name, sizes=sizes))


def _check_runs(name):
    for result in _run(name):
        assert np.isfinite(result).all()
        assert result.std() > 1e-6, "an output without variation tests nothing"


@pytest.mark.parametrize("name", SAMPLED)
def test_fixture_runs(name):
    _check_runs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_fixture_runs(name):
    _check_runs(name)


@pytest.mark.parametrize("name", [n for n in SAMPLED if store.is_dynamic(n, "batch")])
def test_fixture_runs_at_another_batch(name):
    assert _run(name, {"batch": 3, "images": 3})[0].shape[0] in (3, 9)


def test_fixture_is_the_same_at_every_load():
    first, second = (store.load(NAMES[0]).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_manifest_names_the_files_as_they_are():
    files = store.manifest()["files"]
    packed = {p.name.removesuffix(".onnx.xz") for p in store.FOLDER.glob("*.onnx.xz")}
    assert packed == {name for name, entry in files.items() if entry["ok"]}
    for name in packed:
        data = store.path(name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == files[name]["sha256"], name


def test_corpus_is_small():
    assert sum(p.stat().st_size for p in store.FOLDER.iterdir()) <= MAX_BYTES


def test_corpus_is_wide():
    families = store.manifest()["families"]
    exported = {store.manifest()["files"][name]["family"] for name in NAMES}
    assert sum(families[f]["source"] == "transformers" for f in exported) >= 28
    assert sum(families[f]["source"] == "timm" for f in exported) >= 15
    assert sum(families[f]["source"] == "hand" for f in exported) == len(hand.GRAPHS)


def test_every_failure_has_a_reason():
    files = store.manifest()["files"]
    assert all(entry["reason"] for entry in files.values() if not entry["ok"])


def test_stated_softmaxes_are_those_that_ran():
    for name, family in store.manifest()["families"].items():
        if family["source"] == "hand":
            continue
        assert len(family["scores"]) == from_document(family["truth"]).num_softmax, name


def test_exported_attention_is_left_in_the_graph():
    # Each softmax is one Softmax or Attention node: exporters neither merge nor drop any.
    for name in NAMES:
        entry = store.manifest()["files"][name]
        if entry["exporter"] == "hand":
            continue
        counts = [node.op_type for node in store.load(name).graph.node]
        found = counts.count("Softmax") + counts.count("Attention")
        assert found == store.truth(name).num_softmax, name


def test_exported_norms_are_left_in_the_graph():
    # Exporters write every layer norm as one operator, and at opset 23 every RMS norm.
    for name in NAMES:
        entry = store.manifest()["files"][name]
        if entry["exporter"] == "hand":
            continue
        counts = [node.op_type for node in store.load(name).graph.node]
        norms = store.truth(name).norms
        assert counts.count("LayerNormalization") == norms.layer, name
        assert counts.count("BatchNormalization") == norms.batch, name
        if entry["exporter"] == "dyn23":
            assert counts.count("RMSNormalization") == norms.rms, name


def test_written_graph_is_what_is_committed(tmp_path):
    for graph in hand.GRAPHS:
        hand.written(graph, tmp_path)
        name = f"{graph.name}.hand"
        assert (tmp_path / f"{name}.onnx.xz").read_bytes() == store.path(name).read_bytes(), name


def test_unknown_fixture_is_an_error_that_quotes_it():
    with pytest.raises(KeyError, match="no fixture `nothing`"):
        store.load("nothing")


def test_truth_survives_the_manifest():
    truth = store.truth("bert.ts17")
    assert truth.num_attention == 2
    assert truth.attention[0].mask == "padding"
    assert truth.norms == Norms(layer=5)


def test_recipe_draws_the_same_values_forever():
    values = Recipe(-1.0, 1.0, 7).draw((3, 5))
    assert values.shape == (3, 5)
    assert zlib.crc32(values.tobytes()) == 783641070
    assert np.abs(values).max() <= 1.0


def _model(*arrays):
    tensors = [onnx.numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays)]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    return onnx.helper.make_model(graph, ir_version=9)


def test_pack_keeps_equal_weights_equal_and_exact_ones_exact():
    rng = np.random.default_rng(0)
    weight = rng.uniform(-1, 1, (8, 8)).astype(np.float32)
    angles = np.cos(np.arange(64, dtype=np.float32))
    back = unpack(pack(_model(weight, weight, angles), lambda a: a.shape == (8, 8)))
    first, second, third = (onnx.numpy_helper.to_array(t) for t in back.graph.initializer)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(third, angles)
    assert (first != weight).any()
    assert weight.min() <= first.min() < first.max() <= weight.max()
