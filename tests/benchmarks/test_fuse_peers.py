"""What other tools fuse: rows are of this corpus, and wrong results count for nothing."""

import json

import onnx
import pytest

from benchmarks import fuse_coverage, fuse_once, fuse_peers
from benchmarks.fixtures import store

TOOLS = {tool for host in fuse_peers.HOSTS for tool in host.tools}


def test_results_are_of_the_corpus_as_it_is():
    document = json.loads(fuse_peers.OUT.read_text())
    files = store.manifest()["files"]
    assert tuple(document["fixtures"]) == store.names()
    for name, entry in document["fixtures"].items():
        assert entry["sha256"] == files[name]["sha256"], name
        assert set(entry["tools"]) == TOOLS, name


def test_every_row_says_why_there_is_no_result():
    for name, tools in fuse_coverage.peers().items():
        for tool, row in tools.items():
            assert ("ops" in row) if row["ok"] else row["reason"], f"{name}, {tool}"


def test_source_rows_are_the_fixtures_themselves():
    for name, tools in fuse_coverage.peers().items():
        assert tools["source"]["ok"], name
        # Without optimizations and with them ONNX Runtime agrees: the fixture is well conditioned.
        assert tools["source"]["difference"] < fuse_coverage.MAX_DIFFERENCE, name


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("bert_eager", ("bert",)),
        ("t5_gated", ("t5",)),
        ("timm_swinv2", ("swin",)),
        ("timm_levit", ("vit",)),
        ("qwen3", ("qwen3", "gpt2", "phi")),
        ("attention_separate", ("bert", "gpt2")),
    ],
)
def test_model_types_fit_the_family(family, kinds):
    assert fuse_peers.model_types(family) == kinds


ROW = {"ok": True, "difference": 1e-6, "ops": {"Attention": 9, "LayerNormalization": 1}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, fuse_coverage.Fused(attention=2, norms=1)),
        ({"difference": 0.5}, fuse_coverage.Fused(wrong=1)),
        ({"broken": "does not load"}, fuse_coverage.Fused(wrong=1)),
        ({"ok": False, "reason": "timeout"}, fuse_coverage.Fused(wrong=1)),
    ],
)
def test_fused_counts_no_more_than_there_is_and_nothing_wrong(change, expected):
    assert fuse_coverage.fused("bert.ts17", {**ROW, **change}) == expected


def test_op_counts_enter_nested_graphs():
    inner = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "g", [], [])
    branch = {"then_branch": inner, "else_branch": inner}
    node = onnx.helper.make_node("If", ["c"], ["d"], **branch)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    assert fuse_once.op_counts(model) == {"If": 1, "Relu": 2}
