"""Metrics between models: data that is read, runners that agree, and human similarities."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

import regraft
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import CheckError, InputError, TargetError, UsageError
from regraft.ir.text import parse_module
from regraft.metrics import EmbeddingMetric, KlMetric, parse_drop, parse_metric
from regraft.passes.check.runners import EvalRunner
from regraft.passes.quality import accuracy, divergence, perplexity
from regraft.quality import check_drop, measure_quality
from regraft.quality_data import Images, read_matrix

LANGUAGE = """\
module "language"

weight @table : f32[12, 12] role=param = random(1)

symbol B
symbol S

graph(%input_ids : i64[B, S]) {
  %t = weight @table
  %logits = gather(%t, %input_ids) {axis=0}
  return %logits
}
"""
"""What comes next depends on the token before alone: one row of logits per token."""


@pytest.fixture
def tokens() -> Any:
    return np.random.default_rng(0).integers(0, 12, (3, 9))


def test_runtimes_agree_and_are_the_formula(tokens: Any) -> None:
    module = parse_module(LANGUAGE)
    table = module.weights["table"].numpy().astype(np.float64)
    mask = np.ones_like(tokens)
    mask[1, 5:] = 0
    batch = {"input_ids": tokens, "attention_mask": mask}
    logs = log_softmax(table, -1)
    pairs = [(a, b) for row, n in zip(tokens, (9, 5, 9), strict=True)
             for a, b in itertools.pairwise(row[:n])]  # fmt: skip
    nll = -sum(logs[a, b] for a, b in pairs) / len(pairs)
    runners = [EvalRunner(module), OrtRunner(to_proto(module))]
    for runner in runners:
        found = perplexity(runner, [batch])
        assert found.count == len(pairs) == 8 + 4 + 8
        assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-12)
        right = accuracy(runner, [batch], next_token=True)
        assert right.accuracy == np.mean([table[a].argmax() == b for a, b in pairs])
    same = divergence(*runners, [batch])
    assert (same.mean, same.agreement, same.count) == (0.0, 1.0, int(mask.sum()))


def test_a_net_of_pytorch_is_a_runner_too(tokens: Any) -> None:
    torch = pytest.importorskip("torch", reason="runs a model of PyTorch")
    from regraft.backends.torch.net_runner import NetRunner

    module = parse_module(LANGUAGE)
    table = torch.from_numpy(module.weights["table"].numpy().copy())

    class Net(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any:
            return table[input_ids]

    found = perplexity(NetRunner(Net()), [{"input_ids": tokens}])
    assert found == perplexity(EvalRunner(module), [{"input_ids": tokens}])
    with pytest.raises(regraft.RegraftError, match="PyTorch does not run the sample"):
        NetRunner(Net())({"ids": tokens})


def test_models_are_measured_from_python(tokens: Any) -> None:
    a, b = parse_module(LANGUAGE), parse_module(LANGUAGE.replace("random(1)", "random(2)"))
    labels = np.full_like(tokens, -100)
    labels[:, 4] = tokens[:, 4]
    found = regraft.measure(a, b, "perplexity", [{"input_ids": tokens, "labels": labels}])
    assert found.figures["tokens"] == 3
    ratio = found.figures["perplexity_b"] / found.figures["perplexity_a"]  # type: ignore[operator]
    assert found.drop == pytest.approx(ratio - 1)
    same = regraft.measure(a, a, KlMetric(), [{"input_ids": tokens}])
    assert same.to_json()["kl_mean"] == 0.0


def test_texts_are_cut_into_windows_that_lose_nothing(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `hf`")
    vocabulary = {each: idx for idx, each in enumerate("\x00abcdefghij\n")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="\x00"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    text = "".join("abcdefghij\n"[i] for i in np.random.default_rng(0).integers(0, 11, 100))
    (tmp_path / "text.txt").write_text(text)
    module = parse_module(LANGUAGE)
    metric = parse_metric(f"perplexity{{tokenizer={tmp_path},max-tokens=16,batch=3}}")
    found = regraft.measure(module, module, metric, tmp_path / "text.txt")
    ids = np.array([vocabulary[each] for each in text])
    rows = [ids[i : i + 16] for i in range(0, 100, 16)]
    assert found.figures["tokens"] == sum(len(row) - 1 for row in rows) == 93
    logs = log_softmax(module.weights["table"].numpy().astype(np.float64), -1)
    nll = -sum(logs[a, b] for row in rows for a, b in itertools.pairwise(row)) / 93
    assert found.figures["nll_a"] == pytest.approx(nll, rel=1e-12)
    few = regraft.measure(
        module, module, f"accuracy{{tokenizer={tmp_path},max-tokens=16,limit=2}}",
        tmp_path / "text.txt",
    )  # fmt: skip
    assert few.figures["labels"] == 30


def test_images_are_scaled_and_labelled_by_their_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="images need Pillow")
    for idx, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for value in (0, 255):
            image.new("RGB", (4, 4), (value, 100 * idx, 0)).save(tmp_path / name / f"{value}.png")
    data = Images(tmp_path, "x", (3, 2, 2), (0.5, 0, 0), (0.5, 1, 1), 3)
    batches = list(data)
    assert [len(batch["x"]) for batch in batches] == [3, 1]
    assert [batch["labels"].tolist() for batch in batches] == [[0, 0, 1], [1]]
    np.testing.assert_allclose(batches[0]["x"][:, 0, 0, 0], [-1, 1, -1])
    np.testing.assert_allclose(batches[1]["x"][0, 1], 100 / 255)
    whole = Images(tmp_path, "x", (3, 2, 2), (0, 0, 0), (1, 1, 1), 3, is_fixed=True)
    assert len(list(whole)) == 1


@pytest.mark.slow
def test_the_real_encoder_agrees_with_people_as_it_should(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    from benchmarks import encoder
    from benchmarks.models import ModelMissingError, find

    try:
        folder, text = encoder.folder(), find(encoder.TEST_TEXT)
    except ModelMissingError as error:
        pytest.skip(str(error))
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    module = regraft.load(folder)
    metric = EmbeddingMetric(similarities=str(text.parent / "similarities0-1.txt"))
    found = regraft.measure(module, module, metric, text)
    assert found.figures["items"] == 50
    assert round(found.figures["human_spearman_a"] or 0, 4) == 0.5047
    assert found.drop == pytest.approx(0, abs=1e-12)


def test_the_usual_outputs_are_found_and_others_are_asked_for() -> None:
    def two(inputs: Any) -> dict[str, Any]:
        return {"a": np.ones((2, 3), np.float32), "b": np.eye(2, 3, dtype=np.float32)}

    labels = [{"labels": np.array([0, 1])}]
    with pytest.raises(UsageError, match="not clear: a, b"):
        accuracy(two, labels)
    with pytest.raises(UsageError, match="no output `c`"):
        accuracy(two, labels, output="c")
    assert accuracy(two, labels, output="b").accuracy == 1.0


def test_rows_that_fill_a_batch_do_not_count() -> None:
    def run(inputs: Any) -> dict[str, Any]:
        return {"embedding": np.array([[1.0, 0], [0, 0]])}

    batch = {"attention_mask": np.array([[1, 1], [0, 0]])}
    assert measure_quality(EmbeddingMetric(), run, run, [batch]).figures["items"] == 1


def test_drops_are_numbers_or_percent() -> None:
    assert (parse_drop("0.01"), parse_drop("1%"), parse_drop("0")) == (0.01, 0.01, 0.0)
    for text in ("-1", "one", "nan", ""):
        with pytest.raises(UsageError, match="no number of 0 or more"):
            parse_drop(text)


def test_a_drop_beyond_the_limit_is_exit_4(tokens: Any) -> None:
    a, b = parse_module(LANGUAGE), parse_module(LANGUAGE.replace("random(1)", "random(2)"))
    found = regraft.measure(a, b, "kl", [{"input_ids": tokens}])
    check_drop(found, found.drop)
    with pytest.raises(TargetError, match=r"the kl drop is .*, allowed is 0\.001") as caught:
        check_drop(found, 0.001)
    assert caught.value.exit_code == 4


def test_nan_is_no_drop(tokens: Any) -> None:
    def broken(inputs: Any) -> dict[str, Any]:
        return {"logits": np.full((*tokens.shape, 12), np.nan, np.float32)}

    with pytest.raises(CheckError, match="NaN"):
        measure_quality(
            KlMetric(), EvalRunner(parse_module(LANGUAGE)), broken, [{"input_ids": tokens}]
        )


def test_matrices_are_square(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("1 2\n3 4\n5 6\n")
    with pytest.raises(InputError, match="no square matrix"):
        read_matrix(tmp_path / "m.txt")
    (tmp_path / "m.txt").write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match="holds no matrix"):
        read_matrix(tmp_path / "m.txt")
