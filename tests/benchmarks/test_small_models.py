"""Small trained models: a few steps of their training, exact resumption, what is kept, and data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="small models are trained with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

from benchmarks.models import ModelMissingError  # noqa: E402
from benchmarks.small_models import KINDS, copying, corpus, digits, get_kind  # noqa: E402
from benchmarks.small_models.store import content_key  # noqa: E402
from benchmarks.small_models.training import Schedule, train  # noqa: E402
from regraft.backends.onnx import to_proto  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402
from regraft.backends.torch.net_runner import NetRunner  # noqa: E402
from regraft.passes import quality  # noqa: E402
from regraft.passes.check.runners import EvalRunner  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages


def short(name: str, steps: int, **changes: Any) -> Any:
    kind = KINDS[name]
    return replace(kind, schedule=replace(kind.schedule, steps=steps, warmup=1, **changes))


def test_the_split_of_the_corpus_is_by_file_and_covers_the_alphabet() -> None:
    train_ids, held_out = corpus.texts()
    assert len(train_ids) > 10 * len(held_out) > 0
    assert (train_ids == 0).mean() < 1e-3  # what the alphabet does not have
    text = corpus.decode(held_out[:400].tolist())
    np.testing.assert_array_equal(corpus.encode(text), held_out[:400])


def test_batches_are_those_of_their_seed_and_step() -> None:
    first, again = (corpus.training_batch(3, 7, 2, 16)["input_ids"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, corpus.training_batch(3, 8, 2, 16)["input_ids"])


def test_the_copy_follows_the_separator() -> None:
    batch = copying.training_batch(0, 0, 5, 2, 6)
    for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        (at,) = np.flatnonzero(row == copying.SEPARATOR)
        np.testing.assert_array_equal(row[:at], row[at + 1 : 2 * at + 1])
        np.testing.assert_array_equal(labels[at + 1 : 2 * at + 1], row[:at])
        assert (labels[: at + 1] == copying.IGNORED).all()
        assert (labels[2 * at + 1 :] == copying.IGNORED).all()


def test_a_stopped_training_ends_at_the_same_bits(tmp_path: Path) -> None:
    kind = short("copy-lm", 6, checkpoint_every=2)

    def trained(folder: Path, stop_at: int | None = None) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        net = kind.make()

        def loss(net: Any, seed: int, step: int) -> Any:
            if step == stop_at:
                raise KeyboardInterrupt
            return kind.loss(net, seed, step)

        train(net, loss, kind.schedule, 0, folder)
        return net.state_dict()

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", stop_at=5)
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["training.pt"]
    again = trained(tmp_path / "stopped")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_model_is_trained_once_and_runs_everywhere(tmp_path: Path) -> None:
    kind = short("char-lm", 6)
    model = get_kind(kind, 1, cache=tmp_path)
    stamp = (model.folder / "trained.json").stat().st_mtime_ns
    assert get_kind(kind, 1, cache=tmp_path) == model
    assert (model.folder / "trained.json").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [model.folder.name]
    batches = [{k: v[:2, :32] for k, v in batch.items()} for batch in model.held_out()][:2]
    net = quality.perplexity(NetRunner(model.net()), batches)
    assert net.perplexity < 60  # 97 before: frequent characters are learned first
    module = model.module()
    for runner in (OrtRunner(to_proto(module)), EvalRunner(module)):
        found = quality.perplexity(runner, batches)
        assert found.count == net.count == 2 * 2 * 31
        # f32 in another order of sums, over some hundred terms of a logit
        assert found.nll == pytest.approx(net.nll, rel=1e-5)
    assert model.module("decode").states


def test_the_tokenizer_is_that_of_the_corpus(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = get_kind(short("char-lm", 2), cache=tmp_path)
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    text = 'def f(x):\n    return {"a": x + 1}  # ~!\n'
    assert tokenizer.encode(text).ids == corpus.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_key_follows_seed_and_schedule() -> None:
    kind = KINDS["copy-lm"]
    keys = {content_key(kind, 0), content_key(kind, 1), content_key(short("copy-lm", 7), 0),
            content_key(replace(kind, version=2), 0)}  # fmt: skip
    assert len(keys) == 4


def test_schedules_warm_up_and_end_at_zero() -> None:
    schedule = Schedule(100, 1.0, warmup=10)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(9) == schedule.factor(10) == 1.0
    assert 0 < schedule.factor(99) < 1e-3


@pytest.mark.parametrize("name", ["digit-cnn", "digit-vit"])
def test_models_of_digits_learn_and_run(name: str, tmp_path: Path) -> None:
    try:
        pixels, labels = digits.images()
    except ModelMissingError as error:
        pytest.skip(str(error))
    assert pixels.shape == (10_000, 28, 28)
    assert np.bincount(labels).min() > 800
    steps = {"digit-cnn": 40, "digit-vit": 60}[name]
    model = get_kind(short(name, steps), cache=tmp_path)
    batches = list(model.held_out())[::2]
    net = quality.accuracy(NetRunner(model.net()), batches)
    assert net.accuracy > 0.2  # chance is 0.1
    found = quality.accuracy(OrtRunner(to_proto(model.module())), batches)
    assert abs(found.accuracy - net.accuracy) <= 2 / net.count  # all but equal logits


def test_no_digit_is_on_both_sides() -> None:
    try:
        digits.images()
    except ModelMissingError as error:
        pytest.skip(str(error))
    train_idx, held_out = digits._split()
    assert not set(train_idx.tolist()) & set(held_out.tolist())
    assert len(train_idx) + len(held_out) == 10_000
    labels = digits.images()[1]
    assert np.abs(np.bincount(labels[held_out]) * 5 - np.bincount(labels)).max() <= 5
