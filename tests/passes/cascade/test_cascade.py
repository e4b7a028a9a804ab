"""The pass `cascade`: what it falls back on is the network before, and enough decisions stay."""

import dataclasses

import numpy as np
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.passes.cascade import Cascade
from regraft.passes.cascade.cascade import write_cascade
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

TEXT = """
module "net"
symbol B
weight @a : f32[24, 48] = random(1)
weight @b : f32[48, 10] = random(2)
graph(%x : f32[B, 24]) {
  %a = weight @a
  %b = weight @b
  %h = matmul(%x, %a)
  %r = relu(%h)
  %y = matmul(%r, %b)
  return %y
}
"""
AGREEMENT = 0.97
DEVIATIONS = 2 * np.sqrt(AGREEMENT * (1 - AGREEMENT) / 300)
"""Two, of a share of 300."""
ROUNDED = Quantize(weights="int3", method="round")


class Latency:
    """Says that a rewritten network takes half the time, with a cascade or without."""

    def __init__(self, ratio=0.5):
        self.given = ratio

    def ratio(self, before, after):
        return self.given


def samples(count, rows=1, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(rows, 24)).astype(np.float32)} for _ in range(count)]


def scores(module, given):
    return [next(iter(evaluate(module, each).values())) for each in given]


def cascaded(text=TEXT, rows=1):
    net, before = parse_module(text), parse_module(text)
    ROUNDED.run(net, Context())
    ctx = Context(held_out=samples(400, rows), activations=OrtActivations(), latency=Latency(),
                  teacher=before)  # fmt: skip
    return net, before, Cascade(agreement=AGREEMENT).run(net, ctx)


def leads(array):
    top = -np.partition(-array, 1, axis=-1)[:, :2]
    return top[:, 0] - top[:, 1]


def check_rows(net, before, record, given):
    """Checks that every row is that of one of both networks; returns the share that stays."""
    plain = parse_module(TEXT.replace("[B, 24]", f"[{len(given[0]['x'])}, 24]"))
    ROUNDED.run(plain, Context())
    same, fallen = [], []
    for each, after in zip(given, scores(net, given), strict=True):
        want, small = (np.concatenate(scores(m, [each])) for m in (before, plain))
        unsure = leads(small) < record.stats["lead"] - 1e-4
        sure = leads(small) > record.stats["lead"] + 1e-4
        # products of other numbers of rows sum in another order: 8 eps(f32) of scores up to 64
        np.testing.assert_allclose(after[unsure], want[unsure], rtol=0, atol=6e-5)
        np.testing.assert_allclose(after[sure], small[sure], rtol=0, atol=6e-5)
        same.append(after.argmax(-1) == want.argmax(-1))
        fallen.append(unsure)
    assert 0 < np.mean(fallen) < 1
    return np.mean(same)


def test_unsure_rows_are_those_of_the_network_before():
    net, before, record = cascaded()
    given = samples(300, seed=7)
    assert record.stats["agreement-without"] < AGREEMENT
    assert check_rows(net, before, record, given) >= AGREEMENT - DEVIATIONS


def test_a_batch_runs_its_unsure_rows_alone():
    net, before, record = cascaded()
    assert check_rows(net, before, record, samples(20, rows=16, seed=7)) >= AGREEMENT - DEVIATIONS
    (node,) = [node for node in net.graph if node.op.name == "if"]
    assert any(inner.op.name == "gather" for inner in node.bodies[0])


def test_a_batch_of_fixed_size_takes_the_rows_that_are_unsure():
    net, before, record = cascaded(TEXT.replace("[B, 24]", "[4, 24]"), rows=4)
    check_rows(net, before, record, samples(50, rows=4, seed=7))


@pytest.mark.parametrize("size", ["B", "1", "4"])
def test_what_is_written_runs(size):
    text = TEXT.replace("[B, 24]", f"[{size}, 24]")
    net, before = parse_module(text), parse_module(text)
    Quantize(weights="nf4", method="round").run(net, Context())  # runs in floats: as evaluated
    given = samples(20, rows=1 if size == "1" else 4, seed=3)
    lead = float(np.median(leads(np.concatenate(scores(net, given)))))
    write_cascade(net, before, lead, is_probable=False)
    wanted = scores(net, given)
    regraft.apply(net, "legalize{target=ort-cpu}", check="off")
    run = OrtRunner(to_proto(net))
    for each, want in zip(given, wanted, strict=True):
        np.testing.assert_allclose(next(iter(run(each).values())), want, rtol=1e-4, atol=1e-4)


def test_sizes_that_follow_the_batch_follow_the_unsure_rows():
    text = TEXT.replace(
        "%y = matmul(%r, %b)",
        """%s = reshape(%r) {shape = [B, 2, 24]}
  %t = reshape(%s) {shape = [B, 48]}
  %y = matmul(%t, %b)""",
    )
    net, before = parse_module(text), parse_module(text)
    Quantize(weights="nf4", method="round").run(net, Context())
    given = samples(1, rows=9, seed=3)
    small, want = (scores(each, given)[0] for each in (net, before))
    lead = float(np.sort(leads(small))[4])
    write_cascade(net, before, lead, is_probable=False)
    regraft.apply(net, "legalize{target=ort-cpu}", check="off")
    found = next(iter(OrtRunner(to_proto(net))(given[0]).values()))
    unsure = leads(small) < lead
    assert unsure.sum() == 4
    np.testing.assert_allclose(found[unsure], want[unsure], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[~unsure], small[~unsure], rtol=1e-4, atol=1e-4)


def test_probabilities_are_compared_by_their_logarithms():
    text = TEXT.replace("return %y", "%p = softmax(%y) {axis = -1}\n  return %p")
    net, before, record = cascaded(text)
    assert record.changed
    given = samples(300, seed=9)
    after, want = (np.concatenate(scores(m, given)) for m in (net, before))
    assert (after.argmax(-1) == want.argmax(-1)).mean() >= AGREEMENT - DEVIATIONS


def test_no_pass_before_sees_what_is_held_back():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Look(Quantize):
        def run(self, module, ctx):
            seen.append(len(ctx.samples))
            return super().run(module, ctx)

    net = parse_module(TEXT)
    passes = [Look(weights="int3", method="round"), Cascade(agreement=0.3)]
    records = regraft.apply(net, passes, samples=samples(100), check="off")
    assert seen == [75]
    assert records[-1].stats["samples"] == 25


def context(ratio=0.5, agreement_samples=200):
    before = parse_module(TEXT)
    return Context(held_out=samples(agreement_samples), activations=OrtActivations(),
                   latency=Latency(ratio), teacher=before)  # fmt: skip


def rounded():
    net = parse_module(TEXT)
    ROUNDED.run(net, Context())
    return net


def test_a_cascade_that_would_be_slower_is_refused():
    net = rounded()
    with pytest.raises(TargetError, match=r"it would run at 0.91x of the network before"):
        Cascade(agreement=AGREEMENT).run(net, context(ratio=1.1))
    assert all(node.op.name != "if" for node in net.graph)


def test_nothing_is_added_where_enough_decisions_stay():
    net = parse_module(TEXT)
    result = Cascade(agreement=AGREEMENT).run(net, context())
    assert not result.changed
    assert result.stats["agreement-without"] == 1


def test_what_is_missing_is_said():
    with pytest.raises(UsageError, match="no lossy pass comes before it"):
        Cascade().run(parse_module(TEXT), Context())
    with pytest.raises(UsageError, match="3 samples are held back"):
        Cascade().run(rounded(), context(agreement_samples=3))
    with pytest.raises(UsageError, match="not between 0 and 1"):
        Cascade(agreement=99).run(rounded(), context())
    wide = parse_module(TEXT.replace("return %y", "return %y, %h"))
    with pytest.raises(UsageError, match="a classifier of one output"):
        Cascade().run(wide, dataclasses.replace(context(), teacher=wide))


def test_embeddings_are_no_scores():
    named = TEXT.replace("%y", "%sentence_embedding")
    directed = TEXT.replace(
        "  return %y",
        """  %s = mul(%y, %y)
  %t = reduce_sum(%s) {axes = [1], keepdims = true}
  %l = sqrt(%t)
  %u = div(%y, %l)
  return %u""",
    )
    for text, message in ((named, "`sentence_embedding`"), (directed, "vectors of length one")):
        net = parse_module(text)
        ROUNDED.run(net, Context())
        ctx = dataclasses.replace(context(), teacher=parse_module(text))
        with pytest.raises(UsageError, match=message):
            Cascade().run(net, ctx)
