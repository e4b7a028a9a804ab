"""The pass `recover`: what it fits, what it leaves alone, what it asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import regraft
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.places import blocks, compare, hidden_pairs, refits, trained_weights
from regraft.passes.recovery.recover import Recover

pytest.importorskip("torch", reason="recovery trains with PyTorch")

from regraft.backends.torch.training import TorchTrainer

NUM_LAYERS = 4


def stack() -> Module:
    """Returns layers `h + tanh(h @ up) @ down + bias`, a mask beside them, and their mean."""
    lines = ['module "stack"', "symbol B", "symbol S"]
    for i in range(NUM_LAYERS):
        lines += [
            f'weight @"{i}.up" : f32[8, 16] role=param = random({3 * i})',
            f'weight @"{i}.down" : f32[16, 8] role=param = random({3 * i + 1})',
            f'weight @"{i}.bias" : f32[8] role=param = random({3 * i + 2})',
        ]
    lines.append("graph(%x : f32[B, S, 8], %attention_mask : f32[B, S]) {")
    lines.append("  %h0 = tanh(%x)")
    for i in range(NUM_LAYERS):
        lines += [
            f'  %u{i} = weight @"{i}.up"',
            f"  %m{i} = matmul(%h{i}, %u{i})",
            f"  %r{i} = tanh(%m{i})",
            f'  %d{i} = weight @"{i}.down"',
            f"  %p{i} = matmul(%r{i}, %d{i})",
            f'  %b{i} = weight @"{i}.bias"',
            f"  %q{i} = add(%p{i}, %b{i})",
            f"  %h{i + 1} = add(%h{i}, %q{i})",
        ]
    lines += [
        "  %wide = reshape(%attention_mask) {shape = [B, S, 1]}",
        f"  %kept = mul(%h{NUM_LAYERS}, %wide)",
        "  %out = reduce_sum(%kept) {axes = [1], keepdims = false}",
        f"  return %out, %h{NUM_LAYERS}",
        "}",
    ]
    return parse_module("\n".join(lines))


def batches(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.standard_normal((4, 6, 8)).astype(np.float32),
            "attention_mask": (rng.random((4, 6)) < 0.8).astype(np.float32),
        }
        for _ in range(count)
    ]


def lost(module: Module) -> float:
    """Returns the squared error of `out` over its square, on batches nothing was fitted to."""
    held_out, teacher = batches(4, seed=99), stack()
    pairs = [(evaluate(module, b)["out"], evaluate(teacher, b)["out"]) for b in held_out]
    return float(sum(np.square(a - b).sum() for a, b in pairs)) / float(
        sum(np.square(b).sum() for _, b in pairs)
    )


def _recovered(options: str, dropped: int = 1, **more: object) -> Module:
    module = stack()
    regraft.apply(
        module, f"drop-layers{{layers=[{dropped}]}},recover{{{options}}}", check="off",
        training=FixedBatches(batches(12)), **more,
    )  # fmt: skip
    return module


def _dropped(dropped: int = 1) -> Module:
    module = stack()
    regraft.apply(module, f"drop-layers{{layers=[{dropped}]}}", check="off")
    return module


def test_what_two_modules_share() -> None:
    teacher = stack()
    module = teacher.clone()
    regraft.apply(module, "drop-layers{layers=[1]}", check="off")
    shared = compare(module, teacher)
    # everything behind the gap computes something else; the weights before it stay
    changed = {value.name for node in shared.changed for value in node.outputs}
    assert {"m2", "h3", "m3", "h4", "out"} <= changed
    assert not changed & {"h0", "m0", "h1", "wide"}
    names = trained_weights(shared)
    assert set(names) == {f"{i}.{part}" for i in (2, 3) for part in ("up", "down", "bias")}
    assert set(trained_weights(shared, before=1)) == {*names, "0.up", "0.down", "0.bias"}
    assert [(a.name, b.name) for a, b in hidden_pairs(shared)] == [("h3", "h3"), ("h4", "h4")]
    assert [(b.output.name, b.inputs[0][1].name) for b in blocks(shared, None)] == [
        ("h3", "h1"), ("h4", "h3"),
    ]  # fmt: skip
    # only the layer whose stream is another was rewritten itself
    (place,) = refits(shared, "attention_mask")
    assert (place.input.name, place.result.name, place.mask) == ("r2", "h3", "attention_mask")
    assert place.bias is not None
    assert compare(teacher.clone(), teacher).changed == ()


def test_without_weights_behind_the_gap_the_layer_before_it_is_trained() -> None:
    teacher = stack()
    module = teacher.clone()
    regraft.apply(module, f"drop-layers{{layers=[{NUM_LAYERS - 1}]}}", check="off")
    assert set(trained_weights(compare(module, teacher))) == {"2.up", "2.down", "2.bias"}


def test_refitting_is_a_ridge_regression() -> None:
    module = _recovered("steps=0, ridge=1e-6, refit-batches=12")
    assert lost(module) < lost(_dropped()) / 1.3
    teacher, gone = stack(), _dropped()
    x, rest = [], []
    for batch in batches(12):
        keep = batch["attention_mask"] != 0
        h0 = np.tanh(batch["x"])
        h1 = h0 + _branch(teacher, 0, h0)
        h3 = h1 + _branch(teacher, 1, h1)
        h3 = h3 + _branch(teacher, 2, h3)
        x.append(np.tanh(h1 @ _weight(gone, "2.up"))[keep])
        rest.append((h3 - h1)[keep])
    wide = np.concatenate([np.concatenate(x), np.ones((sum(map(len, x)), 1))], 1)
    now = np.concatenate([_weight(gone, "2.down"), _weight(gone, "2.bias")[None]])
    got = np.concatenate([_weight(module, "2.down"), _weight(module, "2.bias")[None]])
    gram = wide.T @ wide
    moment = wide.T @ (np.concatenate(rest) - wide @ now)
    apart = []
    for strength in 1e-6 * 10.0 ** np.arange(5):  # held-out batches chose one
        ridge = strength * gram.diagonal().mean() * np.eye(len(gram))
        apart.append(np.abs(now + np.linalg.solve(gram + ridge, moment) - got).max())
    # f32 products of a well conditioned Gram matrix
    assert min(apart) < 1e-4
    changed = {n for n in gone.weights if not np.array_equal(_weight(gone, n), _weight(module, n))}
    assert changed == {"2.down", "2.bias"}


def test_refitting_to_few_positions_does_no_harm() -> None:
    samples = [{name: array[:1, :4] for name, array in batch.items()} for batch in batches(4)]
    module = stack()
    options = "steps=0, ridge=1e-9, refit-batches=4"
    regraft.apply(
        module, f"drop-layers{{layers=[1]}},recover{{{options}}}", check="off",
        training=FixedBatches(samples),
    )  # fmt: skip
    assert lost(module) < 1.2 * lost(_dropped())


def _weight(module: Module, name: str) -> np.ndarray:
    return module.weights[name].numpy()


def _branch(module: Module, i: int, h: np.ndarray) -> np.ndarray:
    inner = np.tanh(h @ _weight(module, f"{i}.up"))
    return inner @ _weight(module, f"{i}.down") + _weight(module, f"{i}.bias")


@pytest.mark.parametrize("options", ["refit=true", "refit=true, blocks=60"])
def test_training_regains_more_than_refitting_alone(options: str) -> None:
    module = _recovered(f"steps=150, rate=5e-3, precision=fp32, {options}")
    assert lost(module) < lost(_recovered("steps=0"))


@pytest.mark.parametrize("options", ["refit=false", "adapter=lora, rank=4", "adapter=spp"])
def test_training_without_refitting(options: str) -> None:
    module = _recovered(f"steps=150, rate=5e-3, precision=fp32, {options}")
    assert lost(module) < lost(_dropped()) / 1.2
    for name in ("0.up", "0.down", "0.bias"):
        np.testing.assert_array_equal(_weight(module, name), _weight(stack(), name))


def test_an_interrupted_pipeline_resumes_to_the_same_bits(tmp_path: Path) -> None:
    options = "steps=20, checkpoint-every=5, precision=fp32, refit=false"
    whole = _recovered(options)

    class Interrupted(FixedBatches):
        def batches(self, first: int = 0):
            for number, batch in enumerate(super().batches(first), first):
                if number == 12:
                    raise KeyboardInterrupt
                yield batch

    module = stack()
    with pytest.raises(KeyboardInterrupt):
        regraft.apply(
            module, f"drop-layers{{layers=[1]}},recover{{{options}}}", check="off",
            training=Interrupted(batches(12)), work_dir=tmp_path,
        )  # fmt: skip
    assert (tmp_path / "distillation" / "checkpoint.pt").exists()
    again = _recovered(options, work_dir=tmp_path)
    for name in whole.weights:
        assert _weight(again, name).tobytes() == _weight(whole, name).tobytes()


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="needs data"):
        regraft.apply(stack(), "drop-layers{layers=[1]},recover", check="off")
    with pytest.raises(UsageError, match="no module to learn from"):
        regraft.apply(stack(), "recover", check="off", training=FixedBatches(batches(1)))


def test_samples_are_trained_on_where_there_is_no_other_data() -> None:
    module = stack()
    (_, record) = regraft.apply(
        module, "drop-layers{layers=[1]},recover{steps=3}", check="off", samples=batches(2)
    )
    assert record.stats["steps"] == 3
    assert record.stats["refitted"] == 1
    assert set(record.decisions["trained"]) == {
        f"{i}.{part}" for i in (2, 3) for part in ("up", "down", "bias")
    }


def test_statistics_of_normalizations_are_not_trained() -> None:
    text = """
    module "normed"
    symbol B
    weight @"w" : f32[8, 4, 1, 1] role=param = random(1)
    weight @"gain" : f32[8] role=param = random(2)
    weight @"shift" : f32[8] role=param = random(3)
    weight @"mean" : f32[8] role=param = random(4)
    weight @"var" : f32[8] role=param = [1, 1, 1, 1, 1, 1, 1, 1]
    graph(%x : f32[B, 4, 5, 5]) {
      %w = weight @"w"
      %c = conv(%x, %w) {strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], groups = 1}
      %r = relu(%c)
      %gain = weight @"gain"
      %shift = weight @"shift"
      %mean = weight @"mean"
      %var = weight @"var"
      %n = batch_norm(%r, %gain, %shift, %mean, %var) {epsilon = 1e-5}
      %out = reduce_mean(%n) {axes = [1, 2, 3], keepdims = false}
      return %out
    }
    """
    module = parse_module(text)
    x = np.random.default_rng(0).standard_normal((6, 4, 5, 5)).astype(np.float32)
    records = regraft.apply(
        module, "prune{target=flops:0.5,criterion=l2,repair=none},recover{steps=2}", check="off",
        training=FixedBatches([{"x": x}]),
    )  # fmt: skip
    assert set(records[-1].decisions["trained"]) == {"w", "gain", "shift"}


def test_a_module_that_was_saved_as_text_is_trained(tmp_path: Path) -> None:
    """Its matrices are content of their own, made of tensors that are not there any more."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    teacher = regraft.capture(net.eval(), (torch.randn(3, 8),))
    regraft.apply(teacher, "canonicalize,fuse", check="off")
    pruned = teacher.clone()
    regraft.apply(pruned, "prune{target=params:0.51,criterion=l2,repair=none}", check="off")
    module = regraft.load(regraft.save(pruned, tmp_path / "pruned.rg"))
    before = {name: _weight(module, name).copy() for name in module.weights}
    x = str(module.graph.inputs[0].name)
    data = FixedBatches([{x: np.ones((3, 8), np.float32)}])
    Recover(steps=2).run(
        module, Context(trainer=TorchTrainer(progress=False), training=data, teacher=teacher)
    )
    changed = [name for name in before if (before[name] != _weight(module, name)).any()]
    assert len(changed) == 4
