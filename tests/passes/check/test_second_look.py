"""Noise is told from error: by how far the source is from f64, and by agreement in f64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import regraft
from regraft.ir.constants import weight
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.check.compare import EXACT_RTOL, distance
from regraft.passes.check.module_check import CheckReport, check_module
from regraft.passes.check.runners import EvalRunner, accepts, lazily
from regraft.passes.check.samples import Sample, generate_samples
from regraft.passes.check.second_look import SecondLook, second_look
from regraft.passes.cleanup.dead import drop_dead_code

PLANTED = "1.00003"  # an error of 3e-5, relative

WELL = """\
weight @w : f32[8, 4] role=param = random(1)
graph(%x : f32[B, 8]) {
  %w = weight @w
  %y = matmul(%x, %w)
  BODY
}
"""
ILL = """\
graph(%x : f32[B, 8]) {
  %a = literal f32[] 30000
  %b = literal f32[] 10000
  %c = literal f32[] 20000
  BODY
}
"""
THERE_AND_BACK = "%s = add(%x, %a)\n%y = sub(%s, %a)"
IN_STEPS = "%s = add(%x, %b)\n%t = add(%s, %c)\n%y = sub(%t, %a)"
EXACTLY = "return %y"
WRONG = f"%f = literal f32[] {PLANTED}\n%z = mul(%y, %f)\nreturn %z"


def module(text: str, *body: str) -> Module:
    made = parse_module(text.replace("BODY", "\n".join(body)))
    made.graph.set_outputs([("out", made.graph.outputs[0])])
    return made


def check(source: Module, result: Module, *, looks: bool = True) -> CheckReport:
    run = EvalRunner(source)
    samples = generate_samples(source, accepts(run))
    look = second_look(source, result) if looks else None
    return check_module(run, None, EvalRunner(result), samples, look=look)


def test_error_in_a_well_conditioned_model_is_caught() -> None:
    source = module(WELL, EXACTLY)
    assert check(source, module(WELL, EXACTLY)).ok
    report = check(source, module(WELL, WRONG))
    assert not report.ok
    assert report.outputs[0].max_rel == pytest.approx(3e-5, rel=0.1)


def test_noise_of_an_ill_conditioned_model_is_no_error() -> None:
    source, result = module(ILL, THERE_AND_BACK, EXACTLY), module(ILL, IN_STEPS, EXACTLY)
    assert not check(source, result, looks=False).ok
    report = check(source, result)
    assert report.ok
    assert report.outputs[0].max_rel > EXACT_RTOL  # which is what had to be excused


def test_error_below_the_noise_is_caught_all_the_same() -> None:
    source, result = module(ILL, THERE_AND_BACK, EXACTLY), module(ILL, IN_STEPS, WRONG)
    report = check(source, result)
    assert not report.ok
    assert report.outputs[0].allowed < 1e-3  # nothing was excused


def test_what_no_noise_explains_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(SecondLook, "look", lambda self, *given: looked.extend(given[-1]))
    off = WRONG.replace(PLANTED, "1.2")
    assert not check(module(WELL, EXACTLY), module(WELL, off)).ok
    assert looked == []


FOLDED = """\
weight @p : f32[8, 8] role=param = random(1)
weight @q : f32[8, 8] role=param = random(2)
graph(%x : f32[B, 8]) {
  %p = weight @p
  %q = weight @q
  %big = literal f32[] 30000
  %m = matmul(%p, %q)
  %h = matmul(%x, %m)
  %s = mul(%h, %big)
  %t = sin(%s)
  return %t
}
"""


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.001, False)])
def test_folded_weights_are_rounded_once(factor: float, ok: bool) -> None:
    # the sine of a large angle turns the rounding of a weight into a difference of percents
    source = module(FOLDED)
    result = source.clone()
    product = source.weights["p"].numpy() @ source.weights["q"].numpy() * np.float32(factor)
    result.weights.add("pq", ArrayWeight(product))
    node = next(n for n in result.graph if n.op.name == "matmul")
    made = result.graph.create(weight, (), {"name": "pq"}, before=node)
    result.graph.replace(node, [made.output])
    for old in [n for n in reversed(result.graph) if n.op is weight and not n.output.users]:
        result.graph.erase(old)
    assert check(source, result).ok is ok


def test_noise_is_that_of_rounding_values_and_of_rounding_folded_constants() -> None:
    source = module(FACTORS, "%q = mul(%x, %a)", "%h = mul(%q, %b)")
    joined = f"%ab = literal f32[] {np.float32(0.1) * np.float32(0.7)!s}"
    result = module(FACTORS, joined, "%h = mul(%x, %ab)")
    drop_dead_code(result)
    look = second_look(source, result)
    assert look is not None
    inputs = {"x": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)}
    expected, exact = EvalRunner(source)(inputs), EvalRunner(source, oracle=True)(inputs)
    seen = look.look(inputs, expected, EvalRunner(result)(inputs), ["out"])
    assert seen.noise["out"] > 1.2 * distance(expected["out"], exact["out"])


FACTORS = """\
graph(%x : f32[B, 8]) {
  %a = literal f32[] 0.1
  %b = literal f32[] 0.7
  %two = literal f32[] 2
  %big = literal f32[] 30000
  BODY
  %s = mul(%h, %big)
  %t = sin(%s)
  return %t
}
"""


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.001, False)])
def test_folded_factors_are_rounded_once(factor: float, ok: bool) -> None:
    # the power is written as a product; a negative number has no power of a moved 2
    source = module(FACTORS, "%p = pow(%x, %two)", "%q = mul(%p, %a)", "%h = mul(%q, %b)")
    joined = np.float32(np.float32(0.1) * np.float32(0.7) * np.float32(factor))
    folded = f"%ab = literal f32[] {joined!s}"
    result = module(FACTORS, folded, "%p = mul(%x, %x)", "%h = mul(%p, %ab)")
    drop_dead_code(result)
    assert check(source, result).ok is ok


def test_planted_error_in_a_written_file_is_caught(tmp_path: Path) -> None:
    regraft.save(module(WELL, EXACTLY), tmp_path / "a.onnx")
    regraft.save(module(WELL, WRONG), tmp_path / "b.onnx")
    onnx.checker.check_model(tmp_path / "b.onnx")
    assert regraft.compare(tmp_path / "a.onnx", tmp_path / "a.onnx").ok
    report = regraft.compare(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert [diff.ok for diff in report.outputs] == [False]


def test_noise_is_measured_only_where_it_decides() -> None:
    calls: list[str] = []

    def plain(inputs: object) -> dict[str, object]:
        calls.append("plain")
        return {}

    source = module(WELL, EXACTLY)
    run = EvalRunner(source)
    samples = generate_samples(source, accepts(run))
    lazy = lazily(lambda: plain)
    assert check_module(run, lazy, EvalRunner(module(WELL, EXACTLY)), samples).ok
    assert calls == []
    assert not check_module(run, lazy, EvalRunner(module(WELL, WRONG)), samples).ok
    assert len(calls) == len(samples)


HARD_SWISH = """\
graph(%x : f32[B, 4]) {
  %three = literal f32[] 3
  %low = literal f32[] 0
  %six = literal f32[] 6
  BODY
}
"""
SPELLED_OUT = """\
%a = add(%x, %three)
%c = clip(%a, %low, %six)
%m = mul(%x, %c)
%y = div(%m, %six)
return %y
"""
INNER_FIRST = """\
%a = add(%x, %three)
%c = clip(%a, %low, %six)
%m = div(%c, %six)
%y = mul(%x, %m)
return %y
"""
LARGE = np.array([[1.0, 2e38, -1e38, 3.0]], np.float32)  # times six is beyond the largest float


def verdict(source: Module, result: Module, x: np.ndarray) -> CheckReport:
    sample = Sample({"x": x}, {"B": 1}, "given")
    look = second_look(source, result)
    return check_module(EvalRunner(source), None, EvalRunner(result), [sample], look=look)


def test_what_overflow_takes_from_the_source_is_compared_in_f64() -> None:
    source, result = module(HARD_SWISH, SPELLED_OUT), module(HARD_SWISH, INNER_FIRST)
    expected = EvalRunner(source)({"x": LARGE})["out"]
    assert np.isinf(expected).tolist() == [[False, True, False, False]]
    assert verdict(source, result, LARGE).ok


def test_wrong_value_at_an_element_lost_to_overflow_is_caught() -> None:
    source = module(HARD_SWISH, SPELLED_OUT)
    capped = "%f = literal f32[] 1e37\n%z = min(%y, %f)\nreturn %z"  # right at all other elements
    result = module(HARD_SWISH, INNER_FIRST.replace("return %y", capped))
    assert not verdict(source, result, LARGE).ok


def test_overflow_that_only_the_result_has_is_an_error() -> None:
    source, result = module(HARD_SWISH, INNER_FIRST), module(HARD_SWISH, SPELLED_OUT)
    report = verdict(source, result, LARGE)
    assert not report.ok
    assert report.outputs[0].reason == "NaN or Inf at other places"


def test_noise_is_not_judged_by_one_lucky_run() -> None:
    """Inputs that the type holds exactly on the whole way round nothing; others would."""
    source = module(ILL, THERE_AND_BACK, EXACTLY)
    inputs = {"x": np.full((2, 8), 0.25, np.float32)}  # 30000.25 is a number of the type
    look = second_look(source, module(ILL, IN_STEPS, EXACTLY))
    assert look is not None
    outputs = {"out": inputs["x"]}
    seen = look.look(inputs, outputs, outputs, ["out"])
    half_a_step = 30000 * np.finfo(np.float32).eps / 2
    assert half_a_step / 4 < seen.noise["out"] < 4 * half_a_step


@pytest.mark.parametrize(("share", "ok"), [(3.0, True), (5.0, False)])
def test_noise_is_that_of_what_ran_the_source(share: float, ok: bool) -> None:
    """A runtime's sigmoid may be right to 1e-8, which is a thousandth of a small probability."""
    small = module("graph(%x : f32[B, 4]) {\nBODY\n}\n", "%y = sigmoid(%x)\nreturn %y")
    sample = Sample({"x": np.array([[-12.0, -13.0, -14.0, -15.0]], np.float32)}, {"B": 1}, "given")
    run, off = EvalRunner(small), 1e-8

    def reference(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"out": run(inputs)["out"] + np.float32(off)}

    def result(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"out": run(inputs)["out"] - np.float32((share - 1) * off)}

    look = second_look(small, small)
    report = check_module(reference, None, result, [sample], look=look)
    assert report.ok is ok
    assert report.outputs[0].max_abs > EXACT_RTOL * 6.2e-6  # more than is allowed without noise


def test_what_ran_the_source_excuses_no_operator_that_was_read_wrongly() -> None:
    """Source and result come from one import: they agree in f64 however wrong that is."""
    read = module("graph(%x : f32[B, 4]) {\nBODY\n}\n", "%y = gelu(%x)\nreturn %y")
    meant = module("graph(%x : f32[B, 4]) {\nBODY\n}\n", "%y = gelu(%x) {tanh = true}\nreturn %y")
    sample = Sample({"x": np.array([[-2.0, -1.0, 1.0, 2.0]], np.float32)}, {"B": 1}, "given")
    look = second_look(read, read)
    report = check_module(EvalRunner(meant), None, EvalRunner(read), [sample], look=look)
    assert not report.ok
    assert report.outputs[0].max_abs > 1e-4
