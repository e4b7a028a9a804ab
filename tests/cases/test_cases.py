"""Runs every `.rg` file of this folder, and asserts what must hold for any pass.

For every case with passes: the text round trip is the identity before and after, the verifier has
nothing to say, `changed` is truthful, a second run changes nothing, the module that was cloned is
untouched, and outputs agree with the input's within the pass's contract on generated samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from regraft.ir.compare import differences
from regraft.ir.errors import RegraftError
from regraft.ir.module import Module
from regraft.ir.text import parse_module, print_module
from regraft.ir.verify import check
from regraft.passes import PASSES
from regraft.passes.check.module_check import check_module, combined_contract
from regraft.passes.check.runners import EvalRunner, unevaluable
from regraft.passes.check.samples import generate_samples
from regraft.passes.pipeline import parse_pipeline
from regraft.passes.protocol import Context, Pass
from tests.cases.case_file import CaseFile

FOLDER = Path(__file__).parent
PATHS = sorted(FOLDER.rglob("*.rg"))


def show(module: Module) -> str:
    return print_module(module, origins=False)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_case(path: Path, request: pytest.FixtureRequest) -> None:
    case = CaseFile.read(path)
    passes = parse_pipeline(case.pipeline, PASSES) if case.pipeline else []
    if case.error is not None:
        with pytest.raises(RegraftError) as caught:
            run(parse_and_check(case.header + case.source), passes)
        notes = getattr(caught.value, "__notes__", [])
        assert case.error in "\n".join([str(caught.value), *notes])
        return
    source = parse_and_check(case.header + case.source)
    result = source.clone()
    before = print_module(source)
    changed = run(result, passes)
    assert print_module(source) == before, "the pass changed the module that was cloned"
    output = show(result)
    if request.config.getoption("--update"):
        keep = output == show(source) and (passes or case.source.strip() == output.strip())
        case.rewrite(None if keep else output)
    elif case.expected is not None:
        assert output == (show(parse_module(case.expected)) if passes else case.expected)
    elif passes:
        assert output == show(source)
    else:
        assert output.strip() == case.source.strip(), "printed otherwise: add the expected text"
    if passes:
        assert changed == (output != show(source)), "`changed` is not truthful"
        assert not run(result, passes), "a second run changes more"
        assert show(result) == output
        assert_round_trip(result)
        assert_agrees(source, result, passes)


def parse_and_check(text: str) -> Module:
    module = parse_module(text)
    check(module, "full")
    assert_round_trip(module)
    return module


def assert_round_trip(module: Module) -> None:
    text = print_module(module, weights="inline")
    back = parse_module(text)
    assert print_module(back, weights="inline") == text
    assert differences(module, back) == []


def run(module: Module, passes: list[Pass]) -> bool:
    changed = False
    for item in passes:
        changed |= item.run(module, Context()).changed
        check(module, "full")
    return changed


def assert_agrees(source: Module, result: Module, passes: list[Pass]) -> None:
    if unevaluable(source):
        return
    runner = EvalRunner(source)

    def runs(inputs: Mapping[str, Any]) -> bool:
        try:
            runner(inputs)
        except (RegraftError, ValueError):
            return False
        return True

    report = check_module(
        runner,
        EvalRunner(source, oracle=True),
        EvalRunner(result),
        generate_samples(source, runs),
        contract=combined_contract(item.contract for item in passes),
    )
    report.raise_if_failed()
    assert report.num_samples >= 3
