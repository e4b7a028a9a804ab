"""What regraft recognizes, lifts and emits in every fixture of the corpus, against what it states.

A block is *recognized* when the analysis reports it with its form, *lifted* when `fuse` makes it
one canonical operator, and *emitted* fused when the written `ort-cpu` file has a fused operator for
it; the cost table leaves attention written out where that is faster, so that emission is counted as
that of the peers and has no bar. The lifted module is run by the evaluator and the written files by
ONNX Runtime, both against the source file without runtime optimizations.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

import regraft
from benchmarks.fixtures import store
from benchmarks.fixtures.truth import Truth
from benchmarks.fuse_coverage import MAX_DIFFERENCE, Fused, fused, peers
from benchmarks.fuse_once import op_counts
from benchmarks.measure import RESULTS, Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.simplify_once import FUSING
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.analysis.blocks import Blocks, recognize
from regraft.passes.analysis.dependence import data_values
from regraft.passes.check.compare import compare_outputs
from regraft.passes.legalize import Legalize

OUT = RESULTS / "fuse-blocks.json"

SEEDS = (0, 1)
OTHER_SIZES = {"batch": 3, "sequence": 5, "past": 3, "past_sequence": 4, "total": 9}
"""A second binding of the axes that the exporter kept open; the first is the one exported with."""

WHOLE = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")
"""Norms that one canonical operator computes; an L2 norm stays a sum, a root and a quotient."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of blocks; attention of every form."""

    attention: int = 0
    ffn: int = 0
    norms: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Returns the sums."""
        return Counts(
            self.attention + other.attention, self.ffn + other.ffn, self.norms + other.norms
        )


@dataclass(frozen=True, slots=True)
class Examined:
    """One fixture.

    Attributes:
        family: Its family.
        group: `ts17`, `dyn18`, `dyn23` or `hand`.
        kind: Class of architecture, see `kind_of`.
        stated: Blocks it has.
        recognized: Blocks that were reported, at most as many of a kind as it has.
        false: Reported blocks beyond those.
        unread: Properties of blocks that were read off otherwise than stated.
        liftable: Recognized attention of dot products and norms, which an operator computes.
        lifted: Of these, the ones that are that operator after `fuse`.
        why_not: Reasons for those that are not.
        emitted: Fused operators in the `ort-cpu` file, counted as those of the peers.
        nodes: Nodes of the source and of the files for `onnx` and `ort-cpu`.
        unequal: Where an output leaves the tolerance.
        samples: Samples that were compared.
    """

    family: str
    group: str
    kind: str
    stated: Counts
    recognized: Counts
    false: int
    unread: tuple[str, ...]
    liftable: int
    lifted: int
    why_not: tuple[str, ...]
    emitted: Fused
    nodes: Mapping[str, int]
    unequal: tuple[str, ...]
    samples: int


def kind_of(name: str) -> str:
    """Returns the class of architecture, told by what a fixture contains."""
    truth, source = store.truth(name), store.family(name)["source"]
    if source == "hand":
        return "hand-written, nothing to find" if _is_negative(truth) else "hand-written"
    if source == "timm":
        return "vision (timm)"
    if any(block.experts for block in truth.ffn):
        return "mixture of experts"
    causal = [block.mask in ("causal", "causal_padding") for block in truth.attention]
    if any(block.cross for block in truth.attention):
        return "encoder and decoder"
    return "decoder" if any(causal) else "encoder"


def _is_negative(truth: Truth) -> bool:
    norms = truth.norms
    return truth.negative and not truth.ffn and (norms is None or not any(asdict(norms).values()))


def stated_blocks(name: str) -> Counter[tuple[Any, ...]]:
    """Returns the blocks of a fixture by what tells them apart."""
    truth = store.truth(name)
    found: Counter[tuple[Any, ...]] = Counter()
    for a in truth.attention:
        found["attention", a.form, a.heads] += a.count
    for f in truth.ffn:
        found["ffn", f.activation, f.gated, f.experts > 0] += f.count
    assert truth.norms is not None, "the store states norms"
    for kind, count in asdict(truth.norms).items():
        # an instance norm is a group norm with one channel per group
        found["norm", "group" if kind == "instance" else kind] += count
    return +found


def reported_blocks(blocks: Blocks) -> Counter[tuple[Any, ...]]:
    """Returns the recognized blocks in the same terms."""
    found: Counter[tuple[Any, ...]] = Counter()
    for a in (each.describe() for each in blocks.attention):
        form = "channel" if a["kind"] == "channel" else "dot_product"
        found["attention", form, a["heads"]] += 1
    for other in blocks.other_attention:
        found["attention", other.form, other.heads] += 1
    for f in blocks.ffn:
        found["ffn", _activation(f.activation), f.gate is not None, False] += 1
    for moe in (each.describe() for each in blocks.moe):
        found["ffn", _activation(str(moe["activation"])), moe["gated"], True] += 1
    for norm in blocks.norms:
        kind = norm.kind.removesuffix("_norm")
        found["norm", "group" if kind == "instance" else kind] += 1
    return found


def norms_of_parameters(module: Module) -> Counter[tuple[Any, ...]]:
    """Returns the norms that depend on no input, which cleanup computes once and for all."""
    data = data_values(module.graph)
    found: Counter[tuple[Any, ...]] = Counter()
    for block in recognize(module).norms:
        if block.output not in data:
            found["norm", block.kind.removesuffix("_norm")] += 1
    return found


def _activation(name: str) -> str:
    return {"hardswish": "hard_swish"}.get(name, name)


def _properties(name: str, blocks: Blocks) -> Iterator[str]:
    """Yields how properties of dot-product attention differ from those stated."""
    truth = [a for a in store.truth(name).attention if a.form == "dot_product"]
    found = [each for each in blocks.attention if each.kind != "channel"]
    stated: dict[str, list[Any]] = {
        "key heads": [a.kv_heads or a.heads for a in truth for _ in range(a.count)],
        "cross": [a.cross for a in truth for _ in range(a.count)],
        "causal": [a.mask in ("causal", "causal_padding") for a in truth for _ in range(a.count)],
        "rotary": [a.rotary for a in truth for _ in range(a.count)],
        "past": [a.past for a in truth for _ in range(a.count)],
        "sinks": [a.sink for a in truth for _ in range(a.count)],
        "soft cap": [a.softcap for a in truth for _ in range(a.count)],
    }
    windows = sum(a.count for a in truth if a.mask == "window")
    read: dict[str, list[Any]] = {
        "key heads": [each.describe()["kv_heads"] for each in found],
        "cross": [each.kind == "cross" for each in found],
        "causal": [each.is_causal and each.window.left == -1 for each in found],
        "rotary": [each.has_rotary for each in found],
        "past": [each.has_past for each in found],
        "sinks": [each.attention.sinks is not None for each in found],
        "soft cap": [bool(each.attention.softcap) for each in found],
    }
    for what, values in stated.items():
        left = Counter(str(value) for value in values)
        right = Counter(str(value) for value in read[what])
        if left != right and not (what == "causal" and windows):
            yield f"{what}: {dict(right)}, stated {dict(left)}"


def _counts(blocks: Counter[tuple[Any, ...]]) -> Counts:
    by_kind: Counter[str] = Counter()
    for key, count in blocks.items():
        by_kind[key[0]] += count
    return Counts(by_kind["attention"], by_kind["ffn"], by_kind["norm"])


def _bindings(name: str) -> Iterator[dict[str, Any]]:
    for seed in SEEDS:
        yield store.samples(name, seed)
    if any(store.is_dynamic(name, axis) for axis in OTHER_SIZES):
        yield store.samples(name, len(SEEDS), OTHER_SIZES)


def _unequal(
    name: str, source: onnx.ModelProto, lifted: Module, files: Mapping[str, onnx.ModelProto]
) -> tuple[list[str], int]:
    plain, optimized = OrtRunner(source, optimize=False), OrtRunner(source)
    runners = {target: OrtRunner(proto) for target, proto in files.items()}
    found, count = [], 0
    for number, sample in enumerate(_bindings(name)):
        reference, noise = plain(sample), optimized(sample)
        results = {"lifted": evaluate(lifted, sample)}
        results |= {target: runner(sample) for target, runner in runners.items()}
        for where, result in results.items():
            diffs = compare_outputs(reference, result, plain=noise)
            if not any(d.counts for d in diffs):
                found.append(f"sample {number} proves nothing")
            bad = [diff for diff in diffs if not diff.ok]
            found += [f"{where}, sample {number}, `{d.name}`: {d.reason}" for d in bad]
        count += 1
    return found, count


def examine(name: str) -> Examined:
    """Recognizes, lifts, writes and runs one fixture."""
    source = store.load(name)
    module = regraft.load(source)
    folded = norms_of_parameters(module)
    regraft.apply(module, "canonicalize", check="off")
    blocks = recognize(module)
    stated, reported = stated_blocks(name), reported_blocks(blocks) + folded
    lifted = regraft.load(source)
    records = regraft.apply(lifted, FUSING, check="off")
    after = recognize(lifted)
    attention = [a for a in blocks.attention if a.kind != "channel"]
    norms = [n for n in after.norms if n.kind in WHOLE]
    done = sum(a.attention.is_canonical for a in after.attention)
    done += sum(norm.is_canonical for norm in norms)
    files = {}
    for target in ("onnx", "ort-cpu"):
        legal = lifted.clone()
        regraft.apply(legal, [Legalize(target)], check="off")
        files[target] = to_proto(legal, profile=target)
    unequal, samples = _unequal(name, source, lifted, files)
    ops = {target: op_counts(proto) for target, proto in files.items()}
    emitted = {"ok": not unequal, "difference": 0.0, "ops": ops["ort-cpu"]}
    entry = store.manifest()["files"][name]
    return Examined(
        family=entry["family"],
        group=entry["exporter"],
        kind=kind_of(name),
        stated=_counts(stated),
        recognized=_counts(stated & reported),
        false=(reported - stated).total(),
        unread=tuple(_properties(name, blocks)),
        liftable=len(attention) + len(norms),
        lifted=done,
        why_not=tuple(
            dict.fromkeys(skip.reason for record in records for skip in record.skipped)
            if done < len(attention) + len(norms)
            else ()
        ),
        emitted=fused(name, emitted),
        nodes={
            "source": sum(op_counts(source).values()),
            **{target: sum(counts.values()) for target, counts in ops.items()},
        },
        unequal=tuple(unequal),
        samples=samples,
    )


def _save(found: Mapping[str, Examined]) -> None:
    lines = []
    for name, each in found.items():
        row = asdict(each)
        del row["unequal"], row["samples"]  # they depend on the machine
        lines.append(f" {json.dumps(name)}: {json.dumps(row)}")
    OUT.write_text('{\n"fixtures": {\n' + ",\n".join(lines) + "\n}\n}\n")


def _share(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 100.0


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the totals of every class of architecture, then what has to hold."""
    found = {name: examine(name) for name in store.names()}
    _save(found)
    for kind in dict.fromkeys(each.kind for each in found.values()):
        own = {name: each for name, each in found.items() if each.kind == kind}
        yield from _class_rows(kind, own)
    everything = list(found.items())
    wrong = [f"{name}: {'; '.join(each.unread)}" for name, each in everything if each.unread]
    yield at_most("fixtures whose blocks are read otherwise", len(wrong), 0, "", _first(wrong))
    wrong = [name for name, each in everything if each.false]
    yield at_most("fixtures with a false block", len(wrong), 0, "", _first(wrong))
    wrong = [f"{name}: {each.unequal[0]}" for name, each in everything if each.unequal]
    count = sum(each.samples for each in found.values())
    yield at_most(
        "fixtures with an unequal output", len(wrong), 0, "",
        _first(wrong) or f"{count} samples; evaluator, onnx and ort-cpu files against the source",
    )  # fmt: skip
    for target in ("onnx", "ort-cpu"):
        grown = [
            f"{name}: {each.nodes['source']} to {each.nodes[target]}"
            for name, each in everything
            if each.nodes[target] > each.nodes["source"]
        ]
        name = f"{target}: files with more nodes than the source"
        if target == "onnx":
            yield at_most(name, len(grown), 0, "", _first(grown))
        else:  # written out where the cost table says that it is faster
            yield shown(name, len(grown), "", _first(grown))


def _class_rows(kind: str, found: Mapping[str, Examined]) -> Iterator[Row]:
    stated = sum((each.stated for each in found.values()), Counts())
    seen = sum((each.recognized for each in found.values()), Counts())
    label = f"{kind} ({len(found)} files)"
    for what in ("attention", "ffn", "norms"):
        part, whole = getattr(seen, what), getattr(stated, what)
        missed = [
            name
            for name, each in found.items()
            if getattr(each.recognized, what) < getattr(each.stated, what)
        ]
        note = f"{part} of {whole}" + (f"; not in {_first(missed)}" if missed else "")
        if whole:
            yield at_least(f"{label}: {what} recognized", _share(part, whole), 100.0, "%", note)
    liftable = sum(each.liftable for each in found.values())
    lifted = sum(each.lifted for each in found.values())
    left = [
        f"{name} ({'; '.join(each.why_not)})"
        for name, each in found.items()
        if each.lifted < each.liftable
    ]
    if liftable:
        note = f"{lifted} of {liftable}" + (f"; not in {_first(left)}" if left else "")
        share = _share(lifted, liftable)
        yield at_least(f"{label}: attention and norms lifted", share, 100.0, "%", note)
    ours = sum((each.emitted for each in found.values()), Fused())
    yield shown(f"{label}: fused operators, regraft", _total(ours), "", _fused_text(ours))
    rows = peers()
    for tool in ("source", "ort-transformers", "onnxscript", "onnxslim", "onnxsim"):
        theirs = sum((fused(name, rows[name][tool]) for name in found), Fused())
        yield shown(f"{label}: fused operators, {tool}", _total(theirs), "", _fused_text(theirs))


def _total(part: Fused) -> int:
    return part.attention + part.norms + part.activations


def _fused_text(part: Fused) -> str:
    wrong = f", {part.wrong} files wrong (> {MAX_DIFFERENCE:g}) or failed" if part.wrong else ""
    return f"attention {part.attention}, norms {part.norms}, activations {part.activations}{wrong}"


def _first(texts: list[str], count: int = 3) -> str:
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return "; ".join(texts[:count]) + more


def _sources(settings: Settings) -> Iterator[Row]:
    """Holds the corpus to the breadth that was promised."""
    families = store.manifest()["families"]
    made = {store.manifest()["files"][name]["family"] for name in store.names()}
    for source, least in (("transformers", 25), ("timm", 15)):
        count = sum(entry["source"] == source for name, entry in families.items() if name in made)
        yield at_least(f"families of {source}", count, least, "")
    yield held("every fixture has a row of every peer", set(store.names()) <= set(peers()))


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("corpus", "how many families the corpus has", _sources),
    Measurement("coverage", "blocks recognized, lifted, emitted, and equal, by class", measure),
)
