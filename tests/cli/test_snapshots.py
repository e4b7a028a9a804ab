"""What every verb and every flag prints, and its exit code; errors too."""

# ruff: noqa: E501  (a command line stands in one line)

from __future__ import annotations

import io
import itertools
import shlex
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
import pytest

import regraft
from regraft.cli import doctor_cmd
from regraft.cli.main import PLANNED, cli
from regraft.passes.manager import CheckMode
from tests.cli.snapshot import SNAPSHOTS, compare, run, transcript
from tests.cli.workplace import TEXT, populate

CASES = {
    # -- without a verb
    "no-verb": "",
    "version": "--version",
    "help": "--help",
    "help-short": "-h",
    "unknown-verb": "convrt model.onnx",
    "planned-verb": "search model.onnx",
    "planned-verb-search": "search model.onnx",
    "unknown-flag-before-verb": "--verbos",
    # -- convert
    "convert-help": "convert -h",
    "convert": "convert model.onnx -o out",
    "convert-file": "convert model.onnx --out out.onnx",
    "convert-verbose": "convert model.onnx -o out --verbose",
    "convert-quiet": "convert model.onnx -o out -q",
    "convert-json": "convert model.onnx -o out --json",
    "convert-dry-run": "convert model.onnx --dry-run",
    "convert-snake-case": "convert model.onnx --dry_run --no_check",
    "convert-target": "convert model.onnx -o out --target onnx",
    "convert-target-ort-cuda": "convert model.onnx -o out --target ort-cuda",
    "convert-target-triton-file": "convert model.onnx -o out.py --target triton",
    "convert-target-unknown": "convert model.onnx -o out --target ort-cpo",
    "convert-passes": "convert model.onnx --dry-run --passes canonicalize{max-fold-bytes=16}",
    "convert-passes-none": "convert model.onnx --dry-run --passes ''",
    "convert-passes-unknown": "convert model.onnx --dry-run --passes canonicalise",
    "convert-passes-bad-option": "convert model.onnx --dry-run --passes canonicalize{max-fold=1}",
    "convert-passes-bad-value": "convert model.onnx --dry-run --passes canonicalize{max-fold-bytes=x}",
    "convert-passes-syntax": "convert model.onnx --dry-run --passes canonicalize{max",
    "convert-recipe": "convert model.onnx --dry-run --recipe recipe.yaml",
    "convert-recipe-unknown-key": "convert model.onnx --dry-run --recipe bad-recipe.yaml",
    "convert-recipe-absent": "convert model.onnx --dry-run --recipe absent.yaml",
    "convert-passes-and-recipe": "convert model.onnx --dry-run --passes canonicalize --recipe recipe.yaml",
    "convert-explain": "convert model.onnx --dry-run --passes canonicalize --explain transpose-of-transpose",
    "convert-explain-unknown": "convert model.onnx --dry-run --explain transpose-of-transposes",
    "convert-dtype-own": "convert model.onnx --dry-run --dtype fp32",
    "convert-dtype-other": "convert model.onnx --dry-run --dtype fp16",
    "convert-dtype-unknown": "convert model.onnx --dry-run --dtype fp17",
    "convert-opset": "convert model.onnx -o out.onnx --opset 20",
    "convert-opset-too-new": "convert model.onnx -o out.onnx --opset 28",
    "convert-opset-of-no-onnx": "convert model.onnx -o out --target triton --opset 20",
    "convert-opset-no-number": "convert model.onnx -o out.onnx --opset new",
    "convert-freeze": "convert model.onnx --dry-run --freeze batch=2",
    "convert-freeze-unknown": "convert model.onnx --dry-run --freeze bach=2",
    "convert-freeze-syntax": "convert model.onnx --dry-run --freeze batch",
    "convert-train-missing": "convert model.onnx -o out.onnx --train no.txt --checkpoints runs",
    "convert-max-drop": "convert model.onnx --dry-run --max-drop 1%",
    "convert-metric": "convert model.onnx -o out --metric accuracy --data labelled.npz --max-drop 1%",
    "convert-metric-dropped": "convert model.onnx -o out --metric accuracy --data labelled.npz --max-drop 1% --plugin plugin.py:PLUGIN --passes drop-relu --no-check",
    "convert-max-drop-lossy": "convert model.onnx --dry-run --max-drop 1% --plugin plugin.py:PLUGIN --passes forget",
    "convert-aot": "convert model.onnx --dry-run --aot sm_80",
    "convert-aot-empty": "convert model.onnx --dry-run --aot ''",
    "convert-into-file": "convert model.onnx -o model.rg/out",
    "convert-check": "convert --check model.onnx --dry-run",
    "convert-check-each": "convert model.onnx --dry-run --check=each",
    "convert-check-match": "convert model.onnx --dry-run --check match",
    "convert-check-module": "convert model.onnx --dry-run --check=module",
    "convert-check-unknown": "convert model.onnx --dry-run --check=every",
    "convert-no-check": "convert model.onnx --dry-run --no-check",
    "convert-inputs": "convert model.onnx --dry-run --inputs samples",
    "convert-calibrate": "convert model.onnx --dry-run --calibrate samples",
    "convert-calibrate-text": "convert model.onnx --dry-run --calibrate recipe.yaml",
    "convert-calibrate-no-tokenizer": "convert encoder.rg --dry-run --calibrate text.txt",
    "convert-calibrate-tokenizer-absent": "convert encoder.rg --dry-run --calibrate text.txt --tokenizer absent",
    "convert-quantize": "convert encoder.rg -o out --passes quantize --calibrate tokens",
    "convert-quantize-synthetic": "convert encoder.rg -o out --passes quantize{activations=static}",
    "convert-quantize-dropped": "convert encoder.rg -o out --passes quantize{weights=uint2,method=round} --metric embedding --data tokens --max-drop 0.001",
    "convert-inputs-file": "convert model.onnx --dry-run --inputs samples/1.npz",
    "convert-inputs-bad-shape": "convert model.onnx --dry-run --inputs bad-shape.npz",
    "convert-inputs-bad-name": "convert model.onnx --dry-run --inputs bad-name.npz",
    "convert-inputs-absent": "convert model.onnx --dry-run --inputs absent.npz",
    "convert-inputs-no-samples": "convert model.onnx --dry-run --inputs exists",
    "convert-inputs-not-npz": "convert model.onnx --dry-run --inputs recipe.yaml",
    "convert-dims": "convert model.onnx --dry-run --dims batch=5",
    "convert-dims-unknown": "convert model.onnx --dry-run --dims bach=5",
    "convert-seed": "convert model.onnx --dry-run --seed 3",
    "convert-tolerances": "convert model.onnx --dry-run --rtol 1e-6 --atol 1e-7",
    "convert-max-memory": "convert model.onnx --dry-run --max-memory 10B",
    "convert-max-memory-syntax": "convert model.onnx --dry-run --max-memory much",
    "convert-trust-remote-code": "convert model.onnx --dry-run --trust-remote-code",
    "convert-exists": "convert model.onnx -o exists",
    "convert-force": "convert model.onnx -o exists --force",
    "convert-bench": "convert model.onnx -o out --bench",
    "convert-bench-target": "convert model.onnx -o out --bench --target torch",
    "convert-no-out": "convert model.onnx",
    "convert-out-in-no-folder": "convert model.onnx -o absent/out",
    "convert-absent": "convert absent.onnx -o out",
    "convert-absent-json": "convert absent.onnx -o out --json",
    "convert-broken": "convert broken.onnx -o out",
    "convert-text": "convert model.rg -o out",
    "convert-text-broken": "convert wrong.rg -o out",
    "convert-folder-without-model": "convert exists -o out",
    "convert-hugging-face-folder": "convert hf -o out",
    "convert-hugging-face-name": "convert hf:org/name/more -o out",
    "convert-exported-program": "convert model.pt2 -o out",
    "convert-factory": "convert module.py:factory -o out",
    "convert-no-source": "convert",
    "convert-unknown-flag": "convert model.onnx --dry-rum",
    "convert-unlike-any-flag": "convert model.onnx --zzz",
    "convert-two-sources": "convert model.onnx other.onnx",
    "convert-wrong-rule": "convert model.onnx -o out --plugin plugin.py:PLUGIN --passes acme",
    "convert-wrong-rule-each": "convert model.onnx -o out --plugin plugin.py:PLUGIN --passes acme --check=each",
    "convert-wrong-rule-json": "convert model.onnx -o out --plugin plugin.py:PLUGIN --passes acme --json",
    "convert-wrong-rule-unchecked": "convert model.onnx --dry-run --plugin plugin.py:PLUGIN --passes acme --no-check",
    "convert-wrong-pass": "convert model.onnx -o out --plugin plugin.py:PLUGIN --passes drop-relu",
    "convert-wrong-pass-each": "convert model.onnx -o out --plugin plugin.py:PLUGIN --passes drop-relu --check=each",
    # -- plugins
    "plugin-absent": "passes --plugin absent.py:PLUGIN",
    "plugin-no-name": "passes --plugin plugin.py",
    "plugin-unknown-name": "passes --plugin plugin.py:PLUGGIN",
    "plugin-fails": "passes --plugin failing.py:PLUGIN",
    "plugin-no-plugin": "passes --plugin plugin.py:NUMBER",
    "plugin-version": "passes --plugin plugin.py:LATER",
    "plugin-clash": "passes --plugin plugin.py:CLASH",
    "plugin-twice": "passes --plugin plugin.py:PLUGIN --plugin plugin.py:PLUGIN",
    "plugin-not-installed": "passes --plugin acme",
    "plugin-operator-outside": "passes --plugin plugin.py:OUTSIDE",
    # -- inspect
    "inspect-help": "inspect -h",
    "inspect": "inspect model.onnx",
    "inspect-dims": "inspect model.onnx --dims batch=8",
    "inspect-dims-unknown": "inspect model.onnx --dims bach=8",
    "inspect-json": "inspect model.onnx --json",
    "inspect-verbose": "inspect model.onnx -v",
    "inspect-quiet": "inspect model.onnx -q",
    "inspect-couplings": "inspect model.onnx --couplings",
    "inspect-depth-none": "inspect model.onnx --depth",
    "inspect-depth-samples": "inspect model.onnx --depth --calibrate samples",
    "inspect-html": "inspect model.onnx --html page.html",
    "inspect-html-exists": "inspect model.onnx --html model.rg",
    "inspect-force": "inspect model.onnx --html model.rg --force -q",
    "inspect-broken": "inspect broken.onnx",
    "inspect-plugin": "inspect twice.rg --plugin plugin.py:PLUGIN --trust-remote-code",
    # -- compare
    "compare-help": "compare -h",
    "compare": "compare model.onnx model.onnx",
    "compare-different": "compare model.onnx other.onnx",
    "compare-different-json": "compare model.onnx other.onnx --json",
    "compare-json": "compare model.onnx model.onnx --json",
    "compare-tolerances": "compare model.onnx other.onnx --rtol 2 --atol 0.5",
    "compare-inputs": "compare model.onnx model.onnx --inputs samples",
    "compare-dims": "compare model.onnx model.onnx --dims batch=4 --seed 1",
    "compare-max-memory": "compare model.onnx model.onnx --max-memory 10B",
    "compare-quiet": "compare model.onnx model.onnx -q",
    "compare-verbose": "compare model.onnx model.onnx -v",
    "compare-outputs-differ": "compare model.onnx renamed.onnx",
    "compare-metric": "compare model.onnx other.onnx --metric accuracy --data labelled.npz",
    "compare-metric-json": "compare model.onnx other.onnx --metric kl --data labelled.npz --max-drop 50% --json",
    "compare-metric-dropped": "compare model.onnx other.onnx --metric kl{output=y} --data labelled.npz --max-drop 0.001",
    "compare-metric-unknown": "compare model.onnx other.onnx --metric accuarcy --data labelled.npz",
    "compare-metric-option": "compare model.onnx other.onnx --metric kl{limt=3} --data labelled.npz",
    "compare-metric-value": "compare model.onnx other.onnx --metric kl{batch=0} --data labelled.npz",
    "compare-metric-without-data": "compare model.onnx other.onnx --metric accuracy",
    "compare-metric-no-labels": "compare model.onnx other.onnx --metric accuracy --data samples",
    "compare-metric-no-tokenizer": "compare model.onnx other.onnx --metric perplexity --data text.txt",
    "compare-metric-absent": "compare model.onnx other.onnx --metric kl --data nowhere.txt",
    "compare-max-drop-syntax": "compare model.onnx other.onnx --metric kl --data samples --max-drop little",
    "compare-plugin": "compare twice.rg twice.rg --plugin plugin.py:PLUGIN --trust-remote-code",
    "compare-inputs-bad-shape": "compare model.onnx model.onnx --inputs bad-shape.npz",
    "compare-one": "compare model.onnx",
    # -- opt
    "opt-help": "opt -h",
    "opt": "opt model.rg",
    "opt-passes": "opt model.rg --passes canonicalize",
    "opt-stdin": "opt - --passes canonicalize",
    "opt-onnx": "opt model.onnx --passes canonicalize",
    "opt-recipe": "opt model.onnx --recipe recipe.yaml",
    "opt-passes-and-recipe": "opt model.rg --passes canonicalize --recipe recipe.yaml",
    "opt-verbose": "opt model.rg --passes canonicalize -v",
    "opt-quiet": "opt model.rg --passes canonicalize -q",
    "opt-json": "opt model.rg --passes canonicalize --json",
    "opt-out": "opt model.rg --passes canonicalize -o out.rg",
    "opt-out-exists": "opt model.rg -o model.rg",
    "opt-force": "opt model.rg -o model.rg --force",
    "opt-dump": "opt model.rg --passes canonicalize,fold-norms --dump dumps -o out.rg",
    "opt-explain": "opt model.rg --passes canonicalize --explain involution",
    "opt-check-each": "opt model.rg --passes canonicalize --check=each -v",
    "opt-check-match": "opt model.rg --passes canonicalize --check=match -v",
    "opt-check-module": "opt model.rg --passes canonicalize --check=module -v",
    "opt-no-check": "opt model.rg --passes canonicalize --no-check -v",
    "opt-samples": "opt model.rg --passes canonicalize --check=each --dims B=3 --seed 1",
    "opt-inputs": "opt model.rg --passes canonicalize --check=each --inputs samples",
    "opt-wrong-rule": "opt model.rg --passes acme --plugin plugin.py:PLUGIN",
    "opt-plugin-operator": "opt twice.rg --plugin plugin.py:PLUGIN --trust-remote-code",
    "opt-unknown-operator": "opt wrong.rg",
    "opt-plugin-operator-without-plugin": "opt twice.rg",
    # -- bench
    "bench-help": "bench -h",
    "bench": "bench model.onnx other.onnx",
    "bench-json": "bench model.onnx model.onnx --threads 2 --rounds 7 --dims batch=2 --seed 3 --json -q -v",
    "bench-inputs": "bench model.onnx --inputs samples --plugin plugin.py:PLUGIN --trust-remote-code",
    "bench-html": "bench model.onnx other.onnx --rounds 5 --html page.html -q",
    "bench-html-exists": "bench model.onnx --html model.rg",
    "bench-force": "bench model.onnx --rounds 5 --html model.rg --force",
    "bench-no-model": "bench",
    "bench-other-inputs": "bench model.onnx twice.rg --plugin plugin.py:PLUGIN",
    "bench-no-rounds": "bench model.onnx --rounds 0",
    # -- tune
    "tune-help": "tune -h",
    "tune": "tune --target ort-cpu --quick --site gelu --threads 1 -o table.json",
    "tune-json": "tune --quick --site gelu --out table.json --force --json -q -v",
    "tune-unknown-site": "tune --site geli",
    "tune-target-without-table": "tune --target onnx",
    "tune-unknown-target": "tune --target tritn",
    # -- lint
    "lint-help": "lint -h",
    "lint": "lint model.onnx",
    "lint-findings": "lint traps.rg --target ort-cpu",
    "lint-json": "lint traps.rg --json",
    "lint-strict": "lint traps.rg --strict -v",
    "lint-strict-clean": "lint model.onnx --strict -q",
    "lint-target-unknown": "lint model.onnx --target ort-cpo",
    "lint-fix": "lint model.onnx --fix fixed.onnx",
    "lint-plugin": "lint twice.rg --plugin plugin.py:PLUGIN --trust-remote-code",
    # -- bisect
    "bisect-help": "bisect -h",
    "bisect": "bisect model.onnx --passes canonicalize,fold-norms",
    "bisect-found": "bisect model.onnx --passes canonicalize,acme --plugin plugin.py:PLUGIN",
    "bisect-found-json": "bisect model.onnx --passes drop-relu --plugin plugin.py:PLUGIN --json",
    "bisect-out": "bisect model.onnx --passes acme --plugin plugin.py:PLUGIN --out found -q -v --seed 1 --dims batch=3",
    "bisect-inputs": "bisect model.onnx --recipe recipe.yaml --inputs samples --rtol 1e-4 --atol 1e-6",
    "bisect-target": "bisect model.onnx --passes fuse --target torch",
    "bisect-target-unknown": "bisect model.onnx --target ort-cpo",
    "bisect-passes-and-recipe": "bisect model.onnx --passes canonicalize --recipe recipe.yaml",
    "bisect-plugin": "bisect twice.rg --plugin plugin.py:PLUGIN --trust-remote-code",
    # -- rerun
    "rerun-help": "rerun -h",
    "rerun": "rerun made",
    "rerun-json": "rerun made --json -q -v",
    "rerun-source": "rerun made --source other.onnx",
    "rerun-data": "rerun made --inputs samples --train samples --calibrate samples",
    "rerun-plugins": "rerun made --plugin plugin.py:PLUGIN --allow-plugins",
    "rerun-no-records": "rerun exists",
    # -- checkpoint
    "checkpoint-help": "checkpoint -h",
    "checkpoint": "checkpoint pruned",
    "checkpoint-json": "checkpoint pruned --source wide.rg --json -q -v",
    "checkpoint-cut": "checkpoint pruned --cut whole.safetensors -o small.safetensors",
    "checkpoint-cut-other": "checkpoint pruned --cut cut.safetensors -o small.safetensors",
    "checkpoint-restore": "checkpoint pruned --restore cut.safetensors --into whole.safetensors --out back.safetensors --force",
    "checkpoint-no-out": "checkpoint pruned --cut whole.safetensors",
    "checkpoint-no-records": "checkpoint exists --plugin plugin.py:PLUGIN --trust-remote-code",
    # -- audit
    "audit-help": "audit -h",
    "audit-no-experts": "audit model.onnx --inputs samples",
    "audit-nothing-linear": "audit model.onnx --against model.onnx --inputs samples --json",
    "audit-html-alone": "audit model.onnx --inputs samples --html page.html",
    "audit-html-exists": "audit model.onnx --against model.onnx --inputs samples --html model.rg",
    "audit-plugin": "audit twice.rg --against twice.rg --inputs samples --html model.rg --force --plugin plugin.py:PLUGIN --trust-remote-code -q -v",
    # -- passes
    "passes-help": "passes -h",
    "passes": "passes",
    "passes-json": "passes --json",
    "passes-name": "passes fold_norms",
    "passes-name-json": "passes canonicalize --json",
    "passes-unknown": "passes canonicalise",
    "passes-plugin": "passes --plugin plugin.py:PLUGIN --trust-remote-code -q -v",
    # -- doctor
    "doctor-help": "doctor -h",
    "doctor": "doctor",
    "doctor-json": "doctor --json -q -v",
    "doctor-broken": "doctor --unknown",
}  # fmt: skip

DOCTOR = {
    "machine": {"cpu": "Example CPU", "cores": 2, "memory": "8.0 GB"},
    "packages": {"regraft": "0.1.0", "numpy": "2.0.0", "torch": None},
    "providers": ["CPUExecutionProvider"],
    "problems": [],
    "notes": ["`torch` is absent; it is needed for capture"],
}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    populate(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no tables of this machine
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    monkeypatch.setattr(doctor_cmd, "build", lambda: DOCTOR)
    monkeypatch.setattr("regraft.benching.interleaved", _measured)
    monkeypatch.setattr("regraft.tuning.interleaved", _measured)
    monkeypatch.setattr("regraft.tuning.cpu_name", lambda: "Example CPU")


def _measured(calls: Sequence[Callable[[], object]], rounds: int, **_: object) -> list[list[float]]:
    """Runs every call once and says that each takes twice as long as the one before it."""
    for call in calls:
        call()
    return [[2**i * (1 + n / rounds) * 1e-3 for n in range(rounds)] for i in range(len(calls))]


@pytest.mark.parametrize("name", CASES)
def test_prints_what_was_recorded(
    name: str, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    argv = shlex.split(CASES[name])
    if argv[:2] == ["rerun", "made"]:
        regraft.convert("model.onnx", "made", check=CheckMode.OFF)
    if argv[:2] == ["checkpoint", "pruned"]:
        passes = "prune{target=params:0.5}"
        regraft.convert("wide.rg", "pruned", passes=passes, check=CheckMode.OFF)
    text = transcript(argv, *run(argv, capsys))
    compare(name, text, update=pytestconfig.getoption("--update-snapshots"))


def test_no_snapshot_is_left_over() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.txt")} == set(CASES)


def missing_in(cases: Iterable[str]) -> list[str]:
    """Returns what of the command line no case uses: verbs, their flags, and values of choices."""
    lines = [shlex.split(line) for line in cases]
    missing = [f"verb {name}" for name in PLANNED if [name] not in [line[:1] for line in lines]]
    verbs = cli.list_commands(click.Context(cli))
    for verb in ("", *verbs):
        command = cli.get_command(click.Context(cli), verb) if verb else cli
        assert command is not None, verb
        own = [line for line in lines if (line[0] if line and line[0] in verbs else "") == verb]
        if verb and not own:
            missing.append(f"verb {verb}")
        words = {word for line in own for word in line}
        words |= {word.partition("=")[0] for word in words}
        help_names = cli.context_settings["help_option_names"]
        context = click.Context(command, help_option_names=help_names)
        for param in [*command.params, command.get_help_option(context)]:
            if not isinstance(param, click.Option):
                continue
            names = {*param.opts, *param.secondary_opts}
            if not words & names:
                missing.append(f"{verb} {max(param.opts, key=len)}")
            if isinstance(param.type, click.Choice):
                given = {f"{name}={value}" for name in names for value in param.type.choices}
                given -= words
                given -= {f"{a}={b}" for line in own for a, b in itertools.pairwise(line)}
                left_out = {value.partition("=")[2] for value in given}
                # `--no-check` is the usual way to say `--check=off`
                left_out -= {"off"} if "--no-check" in words else set()
                missing += [f"{verb} {max(names, key=len)}={value}" for value in sorted(left_out)]
    return missing


def test_every_verb_flag_and_choice_is_in_a_case() -> None:
    assert missing_in(CASES.values()) == []


@pytest.mark.parametrize("gone", ["--threads", "--html", "--check=each", "-h", "rerun"])
def test_what_no_case_uses_is_found(gone: str) -> None:
    left = [line for line in CASES.values() if gone not in shlex.split(line)]
    assert missing_in(left) != []
