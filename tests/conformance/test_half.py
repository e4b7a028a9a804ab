"""`cast` on every node case with f32 values: well-typed, runs, and within the noise of rounding."""

from tests.conformance.half import DTYPES, cases_with_f32, problem


def test_cast_of_node_cases() -> None:
    failures, lowered = [], 0
    for case, module in cases_with_f32(set()):
        for dtype in DTYPES:
            what, num = problem(case, module.clone(), dtype)
            lowered += num > 0
            if what:
                failures.append(f"{case.name} {dtype}: {what}")
    assert not failures, "\n".join(failures)
    assert lowered > 1000
