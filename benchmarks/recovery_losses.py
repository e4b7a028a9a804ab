"""Losses and adapters: the checks that the papers' claims were turned into, measured.

Imported by `benchmarks.recovery`, which runs the measurements.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown

_CLASSES, _ROWS = 10, 64
_STEPS = 20
_PRUNED = 0.5
_TEXTS = 16
_DIGITS_STEPS, _DIGITS_BATCHES = 200, 6
_DRAWS = 6


def _logits(seed: int) -> Any:
    import torch

    return torch.from_numpy(2 * np.random.default_rng(seed).standard_normal((_ROWS, _CLASSES)))


def _losses(settings: Settings) -> Iterator[Row]:
    import torch

    from regraft.backends.torch.training import losses

    student, teacher = _logits(0), _logits(1)
    label = torch.arange(_ROWS) % _CLASSES
    target = label[:, None]
    sums = [torch.softmax(losses.others(x, target), -1).sum(-1) for x in (student, teacher)]
    worst = max(float((each - 1).abs().max()) for each in sums)
    yield at_most("NKD: classes other than the target sum to one, both sides", worst, 1e-12, "")
    # the authors' code, as published: masks, reshapes and means
    s, t = torch.log_softmax(student, 1), torch.softmax(teacher, 1)
    first = -(t.gather(1, target) * s.gather(1, target)).mean()
    mask = torch.ones_like(student).scatter_(1, target, 0).bool()
    s = torch.log_softmax(student[mask].reshape(_ROWS, -1) / 2.0, 1)
    t = torch.softmax(teacher[mask].reshape(_ROWS, -1) / 2.0, 1)
    want = float(first - 1.5 * 2.0**2 * (t * s).sum(1).mean())
    got = float(losses.nkd(student, teacher, label, 1.5, 2.0))
    yield at_most("NKD against the authors' code", abs(got - want) / abs(want), 1e-6, "")
    scaled = [float(losses.normalized_mse(a * student, a * teacher)) for a in (1.0, 1e-3, 1e3)]
    apart = (max(scaled) - min(scaled)) / scaled[0]
    yield at_most("normalized MSE: features 1e-3 to 1e3 times as large", apart, 1e-12, "")
    nothing = float(losses.normalized_mse(torch.zeros_like(teacher), teacher))
    yield at_most("normalized MSE of a student of zeros, from 1", abs(nothing - 1), 1e-12, "")
    average = losses.ensemble_logits([_logits(seed) for seed in (2, 3, 4)])
    same = abs(float(losses.kl(average, average)))
    yield at_most("ensemble: loss where the student is the teachers' average", same, 1e-12, "")


def _adapted(settings: Settings) -> Iterator[Row]:
    """Adapters on the real encoder, its matrices pruned to half."""
    from benchmarks.encoder import encoder, training_batches
    from regraft.backends.torch.read_back import read_back
    from regraft.backends.torch.tensors import tensor_from
    from regraft.backends.torch.training import TorchTrainer
    from regraft.passes.recovery.objective import NormalizedMse, Term
    from regraft.passes.recovery.task import Adapter, Lora, Schedule, Spp, Task

    teacher = encoder()
    data = training_batches(256)
    name = str(teacher.graph.output_names[0])
    term = Term(NormalizedMse(), name, name)
    adapters: tuple[tuple[str, Adapter], ...] = (("SPP", Spp()), ("LoRA", Lora()))
    for kind, adapter in adapters:
        module = teacher.clone()
        names, arrays = _matrices(module)
        pruned = {each: _pruned(array) for each, array in arrays.items()}
        read_back(module, {n: tensor_from(a) for n, a in pruned.items()}, partial=True)
        task = Task((term,), Schedule(_STEPS, 1e-3, 3, precision="fp32"), names, adapter)
        report = TorchTrainer().distill(module, [teacher], task, data)
        after = _matrices(module)[1]
        new = sum(int(((pruned[n] == 0) & (after[n] != 0)).sum()) for n in names)
        total = sum(int((pruned[n] == 0).sum()) for n in names)
        lost = sum(report.losses[:5]) / 5, sum(report.losses[-5:]) / 5
        if kind == "SPP":
            yield at_most("SPP folded: zeros that became nonzero", new, 0, "weights",
                          f"of {total} in {len(names)} matrices")  # fmt: skip
        else:
            yield shown("LoRA folded: zeros that became nonzero", new, "weights", f"of {total}")
        yield at_most(f"{kind}: loss after {_STEPS} steps, of that before", lost[1] / lost[0],
                      0.98, "", f"{lost[0]:.3g} to {lost[1]:.3g}")  # fmt: skip


def _matrices(module: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the matrices of products, by the names of the checkpoint."""
    from regraft.backends.torch.training.nets import NamedNet

    net = NamedNet(module, {"embedding": module.graph.outputs[0]})
    paths = {net.plan.names.get(path, path): path for path in net.matrices()}
    arrays = {n: net.net.get_parameter(path).detach().numpy() for n, path in paths.items()}
    return tuple(paths), arrays


def _pruned(array: Any) -> Any:
    found = array.copy()
    found[np.abs(found) < np.quantile(np.abs(found), _PRUNED)] = 0
    return found


def _folded(settings: Settings) -> Iterator[Row]:
    """Adapters on the real encoder: equal at the start, and bit-equal when they are folded."""
    import torch

    from benchmarks.encoder import encoder, test_batch
    from regraft.backends.torch.training.adapters import attach, fold
    from regraft.backends.torch.training.nets import NamedNet
    from regraft.passes.recovery.task import Lora, Spp

    module = encoder()
    output = {"embedding": module.graph.outputs[0]}
    batch = {n: torch.from_numpy(np.asarray(a)[:_TEXTS]) for n, a in test_batch().items()}
    for kind, adapter in (("LoRA", Lora()), ("SPP", Spp())):
        net = NamedNet(module, output).requires_grad_(False)
        with torch.no_grad():
            want = net(batch)["embedding"]
            paths = net.matrices()
            attach(net.net, paths, adapter, seed=0)
            start = net(batch)["embedding"]
            yield held(f"{kind}: training starts at the weights", torch.equal(start, want))
            for parameter in net.net.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
            unfolded = net(batch)["embedding"]
            fold(net.net, paths)
            folded = net(batch)["embedding"]
        moved = float((unfolded - want).abs().max())
        yield held(
            f"{kind}: folded outputs are bit-equal", torch.equal(folded, unfolded) and moved > 0,
            f"{len(paths)} matrices, outputs moved by {moved:.2g}",
        )  # fmt: skip


def _ensemble(settings: Settings) -> Iterator[Row]:
    """A pruned net of digits: what teachers give back, and labels, at equal steps and data."""
    import regraft
    from benchmarks.small_models import digits, get
    from regraft.backends.torch.executor import TorchExecutor
    from regraft.backends.torch.training import TorchTrainer
    from regraft.passes.recovery.fixed import FixedBatches
    from regraft.passes.recovery.objective import CrossEntropy, Discriminator, Kl, Term
    from regraft.passes.recovery.task import Schedule, Task

    digits.fetch()
    teachers = [get("digit-cnn").module(), get("digit-vit").module()]
    tests = list(digits.held_out(500))
    executor = TorchExecutor()

    def accuracy(module: Any) -> float:
        outputs = executor.run(module, [{"pixel_values": t["pixel_values"]} for t in tests])
        pairs = zip(outputs, tests, strict=True)
        right = [out["logits"].argmax(-1) == test["labels"] for out, test in pairs]
        return 100 * float(np.concatenate(right).mean())

    student = get("digit-cnn").module()
    yield shown("digits: accuracy before pruning", accuracy(student), "%")
    regraft.apply(student, "canonicalize,prune{target=params:0.3}", check="off")
    yield shown("digits: accuracy of 30 % of the parameters", accuracy(student), "%")
    kl = Term(Kl(), "logits", "logits")
    runs = {
        "labels": (Term(CrossEntropy(), "logits", label="labels"),),
        "two teachers": (kl,),
        "and a discriminator": (kl, Term(Discriminator(), "logits", "logits", weight=0.1)),
    }
    reached: dict[str, list[float]] = {name: [] for name in runs}
    for draw in range(_DRAWS):
        few = FixedBatches([digits.training_batch(draw, i, 32) for i in range(_DIGITS_BATCHES)])
        for name, terms in runs.items():
            module = student.clone()
            task = Task(terms, Schedule(_DIGITS_STEPS, 2e-3, 5))
            TorchTrainer().distill(module, [] if name == "labels" else teachers, task, few)
            reached[name].append(accuracy(module))
    for name, values in reached.items():
        yield shown(f"digits: regained with {name}", float(np.mean(values)), "%",
                    f"mean of {_DRAWS} draws of {32 * _DIGITS_BATCHES} digits, "
                    f"{_DIGITS_STEPS} steps each")  # fmt: skip
    for name in ("two teachers", "and a discriminator"):
        gains = np.subtract(reached[name], reached["labels"])
        error = float(gains.std(ddof=1) / np.sqrt(_DRAWS))
        yield at_least(
            f"digits: {name} over labels, less two standard errors",
            float(gains.mean()) - 2 * error, 0.0, "points",
            f"{gains.mean():.2f} ± {error:.2f}, better in {int((gains > 0).sum())} of {_DRAWS}",
        )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("losses", "NKD, normalized MSE, ensembles against their definitions", _losses),
    Measurement("ensemble", "teachers against labels on a pruned net (MEAL V2)", _ensemble),
    Measurement("folded", "adapters fold into the weights", _folded),
    Measurement("adapted", "adapters on a pruned encoder", _adapted),
)
