"""Which linear attention becomes a call of a kernel, and what packages say of the rest."""

import json

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft.backends.torch.library import recurrence
from regraft.backends.triton.package import save_package
from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from tests.backends.triton.harness import check, interpreted
from tests.backends.triton.test_attention import normal
from tests.backends.triton.test_package import imported, unbroken

SHAPES = {"q": (1, 2, 5, 4), "k": (1, 2, 5, 4), "v": (1, 2, 5, 3), "decay": (1, 2, 5, 1),
          "gates": (1, 2, 5, 4), "beta": (1, 2, 5, 1)}  # fmt: skip


def package_of(folder, *operands, dtype=DType.F32, **attrs):
    """Returns the text of the model, and what its package says stays PyTorch's."""
    graph = Graph()
    given = [name and graph.add_input(name, TensorType(dtype, SHAPES[name])) for name in operands]
    out, _ = Builder(graph).multi(linear_attention, *given, **{"scale": 1.0, **attrs})
    graph.add_output("out", out)
    folder.mkdir()
    save_package(Module(graph, "recurrence"), folder)
    made = json.loads((folder / "partition.json").read_text())
    return unbroken((folder / "model.py").read_text()), made["kept"]


@pytest.mark.parametrize("name", ["relu", "elu", "exp", "softmax", "hedgehog"])
def test_feature_maps_and_sums_are_the_kernels(tmp_path, name):
    text, kept = package_of(
        tmp_path / name, "q", "k", "v", rule="linear", feature_map=name, normalizer="sum",
        epsilon=0.5,
    )  # fmt: skip
    assert (
        f'kernels.linear_attention(q, k, v, feature_map="{name}", normalize=True, epsilon=0.5'
        in (text)
    )
    assert kept == []


def test_sums_of_f16_are_the_kernels_too(tmp_path):
    text, _ = package_of(
        tmp_path / "half", "q", "k", "v", rule="linear", dtype=DType.F16, normalizer="sum"
    )
    assert "kernels.linear_attention(q, k, v, normalize=True" in text


def test_features_that_no_kernel_makes_stand_before_it(tmp_path):
    text, kept = package_of(tmp_path / "taylor", "q", "k", "v", rule="linear", feature_map="taylor")
    assert "kernels.linear_attention(" in text
    assert text.count('"taylor"') >= 2
    assert kept == []


@pytest.mark.parametrize(
    ("operands", "rule", "called"),
    [
        (("q", "k", "v", None, None, "beta"), "delta", "(q, k, v, beta=beta.squeeze(3)"),
        (("q", "k", "v", None, "gates"), "gated", "(q, k, v, decay=gates"),
        (
            ("q", "k", "v", None, "decay", "beta"),
            "gated_delta",
            "decay=decay, beta=beta.squeeze(3)",
        ),
        (
            ("q", "k", "v", None, "gates", "beta"),
            "gated_delta",
            "decay=gates, beta=beta.squeeze(3)",
        ),
    ],
    ids=["delta", "gates", "gated delta", "gates and delta"],
)
def test_delta_rules_and_factors_per_channel_are_a_kernels(tmp_path, operands, rule, called):
    text, kept = package_of(
        tmp_path / "delta", *operands, rule=rule, feature_map="elu", normalizer="sum", epsilon=0.5
    )
    assert "kernels.gated_delta_attention(" in text
    assert called.replace("q, k", 'feature(q, "elu"), feature(k, "elu")') in text
    assert "normalize=True, epsilon=0.5" in text
    assert kept == []
    source = (tmp_path / "delta" / "kernels.py").read_text()
    assert "def delta_scan_kernel(" in source
    assert "def linear_attention_kernel(" not in source


def test_a_package_computes_a_delta_rule_and_its_gradient(tmp_path):
    names = ("q", "k", "v", "gates", "beta")
    package_of(
        tmp_path / "delta_rule", *names[:3], None, *names[3:], rule="gated_delta",
        feature_map="softmax", scale=0.5,
    )  # fmt: skip
    given = [normal(*SHAPES[name], seed=i) for i, name in enumerate(names)]
    inputs = [*given[:3], -given[3].abs(), given[4].sigmoid()]
    with interpreted():
        made = imported(tmp_path / "delta_rule", "model").load()

    def usual(*x):
        return recurrence.linear_attention(*x[:3], None, *x[3:], 0.5, 1, feature_map="softmax")[0]

    check(lambda *x: made(*x), usual, inputs)


def test_a_package_says_why_pytorch_computes_the_rest(tmp_path):
    operands, attrs, reason = ("q", "k", "v"), {"rule": "linear", "causal": False}, "not causal"
    text, kept = package_of(tmp_path / "kept", *operands, **attrs)
    assert "kernels.linear_attention(" not in text
    assert [row["operator"] for row in kept] == ["linear_attention"]
    assert reason in kept[0]["reason"]
