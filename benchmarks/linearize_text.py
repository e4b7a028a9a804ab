"""Linearized language models: what is regained, what transfer is worth, what branches are for.

The character model reads local text, on which a window is enough; the copy model needs memory over
the whole text. A recipe that looks perfect on the first shows on the second what its linear branch
can do: both are printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from statistics import fmean

from benchmarks.kept_figures import Figures
from benchmarks.linearize_decode import COPY
from benchmarks.linearize_recipes import Recipe, audited, measured
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.small_models import copying
from regraft.passes.linearization.verdict import Verdict

SEEDS = range(3)
WINDOW = 16

_FAST = 0.06
"""Learning rate of the maps: at a sixth of it, 200 steps are too few for the last layers."""
LINEAR = Recipe(transfer=200, lora=150, loss="mixed", rate=_FAST)
ALONE = Recipe(transfer=0, lora=350)
"""Adapters and maps without transfer, in as many steps."""
PLAIN = Recipe(window=WINDOW, merge="lolcats", loss="hybrid")
"""The recipe of LoLCATs: both branches are fitted together."""
FIXED = Recipe(lora=300, window=WINDOW, loss="mixed", dropout=0.3, rate=_FAST)
"""The linear branch is fitted by itself, before the window is added, which later is off in some
steps, a third of them in the beginning.
"""
COPY_WINDOW = Recipe(method="window", transfer=0, lora=500, window=8)

_TRANSFER, _LORA, _STRETCH, _HYBRID = 0.50, 0.72, "stretch 0.55 and 0.75", 0.98
_BEATS, _KL_FALL = 0.03, 0.45
_COPIES, _NEAR_CHANCE = 0.65, 0.03


def regained(found: Figures, stage: str) -> float:
    """Returns what of the loss of the swap a stage brings back."""
    swap, teacher = found["swap"], found["teacher"]
    return float((swap - found[stage]) / (swap - teacher))


def _text(seed: int, settings: Settings) -> Iterator[Row]:
    linear = measured("char-lm", seed, LINEAR, settings)
    note = " -> ".join(f"{linear[key]:.3f}" for key in ("swap", "transfer", "lora"))
    teacher = f"{note} nats, teacher {linear['teacher']:.3f}"
    for stage, bar in (("transfer", _TRANSFER), ("lora", _LORA)):
        yield at_least(
            f"char-lm {seed}: linear alone regains after {stage}", regained(linear, stage), bar,
            "", f"{teacher}; {_STRETCH}",
        )  # fmt: skip
    falls, own = (
        [1 - after / before for before, after in zip(*each, strict=True)]
        for each in (
            (linear["swap kl"], linear["transfer kl"]),
            [[fmean(x["kl"]) for x in linear[f"{s} attention"]] for s in ("swap", "transfer")],
        )
    )
    yield at_least(
        f"char-lm {seed}: KL of attention falls in every layer", min(falls), _KL_FALL, "",
        f"{_listed(falls)}; fed by the student's own layers: {_listed(own)}",
    )  # fmt: skip
    alone = measured("char-lm", seed, ALONE, settings)
    yield at_least(
        f"char-lm {seed}: transfer and adapters over adapters alone",
        alone["lora"] - linear["lora"], _BEATS, "nats",
        f"{linear['lora']:.3f} and {alone['lora']:.3f}, 350 steps each",
    )  # fmt: skip


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in numbers)


def _parts(found: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in found.items())


def _hybrids(seed: int, settings: Settings) -> Iterator[Row]:
    for name, recipe in (("plain", PLAIN), ("fixed", FIXED)):
        found = measured("char-lm", seed, recipe, settings)
        yield at_least(
            f"char-lm {seed}: hybrid, {name} recipe, regains", regained(found, "lora"), _HYBRID,
            "", f"{found['lora']:.3f} nats, teacher {found['teacher']:.3f}",
        )  # fmt: skip
        report = audited("char-lm", seed, recipe, settings)
        parts = f"verdict {report['verdict']}; {_parts(report['ablations'])}"
        if name == "plain":
            yield held(
                f"char-lm {seed}: verdict of the audit on local text is `window`, plain recipe",
                report["verdict"] == str(Verdict.WINDOW), parts,
            )  # fmt: skip
        else:
            yield shown(
                f"char-lm {seed}: lost without the linear branch, fixed recipe",
                100 * report["linear_share"], "%", parts,
            )  # fmt: skip


def _copies(seed: int, settings: Settings) -> Iterator[Row]:
    chance = 1 / copying.NUM_LETTERS
    found = measured("copy-lm", seed, COPY, settings)
    parts = found["lora branches"]
    yield at_least(
        f"copy-lm {seed}: letters copied by the hybrid", found["lora"], _COPIES, "",
        f"teacher {found['teacher']:.3f}, swap {found['swap']:.3f}, "
        f"transfer {found['transfer']:.3f}, linear branch alone {parts['linear']:.3f}",
    )  # fmt: skip
    yield at_most(
        f"copy-lm {seed}: the linear branch off, over chance", abs(parts["window"] - chance),
        _NEAR_CHANCE, "", f"{parts['window']:.3f}, chance {chance:.3f}",
    )  # fmt: skip
    window = measured("copy-lm", seed, COPY_WINDOW, settings)
    yield at_most(
        f"copy-lm {seed}: a window alone, trained as long, over chance",
        abs(window["lora"] - chance), _NEAR_CHANCE, "", f"{window['lora']:.3f}",
    )  # fmt: skip
    report = audited("copy-lm", seed, COPY, settings)
    yield held(
        f"copy-lm {seed}: the audit says that the linear branch matters, fixed recipe",
        report["verdict"] in map(str, (Verdict.HYBRID, Verdict.NO_WINDOW)),
        f"verdict {report['verdict']}, {100 * report['linear_share']:.0f} % lost without it; "
        f"{report['measure']}: {_parts(report['ablations'])}",
    )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = tuple(
    Measurement(f"{name}-{seed}", about, partial(run, seed))
    for name, about, run in (
        ("text", "linear attention alone on the character model", _text),
        ("hybrid", "a window beside it, on local text", _hybrids),
        ("copies", "memory over the whole text", _copies),
    )
    for seed in SEEDS
)
