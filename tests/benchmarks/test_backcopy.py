"""Bigram-Backcopy: the language, its probabilities, and models of it with other weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="small models are trained with PyTorch")

from benchmarks.small_models import backcopy, backcopy_lms, get_kind  # noqa: E402
from benchmarks.small_models.store import content_key  # noqa: E402
from benchmarks.small_models.training import Schedule, train  # noqa: E402
from regraft.backends.onnx import to_proto  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402
from regraft.backends.torch.net_runner import NetRunner  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages


def test_texts_begin_with_the_mark_and_follow_their_probabilities() -> None:
    ids = backcopy.draw(0, 0, 2000)
    np.testing.assert_array_equal(ids, backcopy.draw(0, 0, 2000))
    assert (ids[:, 0] == 0).all()
    assert (ids[:, 1:] > 0).all()
    p = backcopy.probabilities(ids)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    assert (p[..., 0] == 0).all()
    drawn = np.take_along_axis(p[:, :-1], ids[:, 1:, None], -1)[..., 0]
    assert (drawn > 0).all()
    # the mean of -log p is the entropy; 62,000 draws of about one nat are within 0.02 of it
    entropy = -(p[:, :-1] * np.log(p[:, :-1], where=p[:, :-1] > 0, out=np.zeros_like(p[:, :-1])))
    assert -np.log(drawn).mean() == pytest.approx(entropy.sum(-1).mean(), abs=0.02)


def test_behind_vowels_the_character_before_them_follows() -> None:
    ids = backcopy.draw(1, 0, 500)
    likely = backcopy.probabilities(ids).max(-1)[:, 2:-1] >= backcopy._COPIED
    same = ids[:, 3:] == ids[:, 1:-2]
    copies = np.isin(ids[:, 2:-1], np.flatnonzero(backcopy._language()[1]))
    assert 0.1 < copies.mean() < 0.4
    assert likely[copies].all()
    assert 0.88 < same[copies].mean() < 0.94
    assert same[~copies].mean() < 0.3


@pytest.mark.parametrize("variant", list(backcopy_lms.VARIANTS))
def test_models_train_and_run_everywhere(variant: str, tmp_path: Path) -> None:
    kind = backcopy_lms._KINDS[variant]
    short = replace(kind, schedule=replace(kind.schedule, steps=25, warmup=5))
    model = get_kind(short, 0, cache=tmp_path)
    assert model.loss < 3.6  # log 40 = 3.7 before
    batch = next(iter(model.held_out()))
    (net,) = NetRunner(model.net())(batch).values()
    (found,) = OrtRunner(to_proto(backcopy_lms.module(model)))(batch).values()
    # f32 in another order of sums, over some hundred terms of a logit of a few units
    np.testing.assert_allclose(found, net, atol=1e-4)


def test_weight_decay_is_of_matrices_and_of_the_key_where_there_is_one(tmp_path: Path) -> None:
    kind = backcopy_lms._KINDS["softmax"]
    without = replace(kind, schedule=replace(kind.schedule, weight_decay=0.0))
    assert content_key(kind, 0) != content_key(without, 0)
    assert asdict(Schedule(1, 1.0))["weight_decay"] == 0.0
    net = backcopy_lms.BackcopyLm()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    schedule = Schedule(1, 0.5, warmup=1, weight_decay=1.0)
    train(net, lambda net, seed, step: 0 * sum(p.sum() for p in net.parameters()), schedule, 0,
          tmp_path)  # fmt: skip
    for name, p in net.named_parameters():
        factor = 0.5 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)
