"""The exact programme, through HiGHS: options are binary, products of options are linearized."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from regraft.ir.errors import UsageError
from regraft.passes.solver.problem import Choice, PairwiseCosts, Problem, SeparateCosts

Array = np.ndarray[Any, Any]

TIME_LIMIT_S = 60.0
_GAP = 1e-6


def mixed_integer(
    problem: Problem, *, time_limit_s: float = TIME_LIMIT_S
) -> tuple[Choice, float] | None:
    """Returns the choice found and a bound of the least loss, None where none fits.

    A pair of units has one variable per pair of options; its rows and columns sum to the options'
    own variables, which makes it their product.

    Raises:
        UsageError: For costs of another form.
    """
    costs = problem.costs
    if isinstance(costs, SeparateCosts):
        costs = PairwiseCosts(costs.tables, {}, costs.fixed)
    if not isinstance(costs, PairwiseCosts):
        raise UsageError(
            "solver `milp`: costs must be those of single units and pairs",
            hint="use method=dp, which takes costs at the current point",
        )
    first = np.cumsum([0, *(unit.count for unit in problem.units)])
    count = int(first[-1])
    losses = np.concatenate([unit.losses for unit in problem.units])
    spent = np.concatenate([np.asarray(table, np.float64) for table in costs.tables])
    rows = _Rows()
    for idx, unit in enumerate(problem.units):
        rows.add([(int(first[idx]) + k, 1.0) for k in range(unit.count)], 1.0)
    extra: list[Array] = []
    for (i, j), table in costs.pairs.items():
        start = count + sum(part.size for part in extra)
        extra.append(np.asarray(table, np.float64).reshape(-1))
        a, b = table.shape
        for k in range(a):
            line = [(start + k * b + m, 1.0) for m in range(b)]
            rows.add([*line, (int(first[i]) + k, -1.0)], 0.0)
        for m in range(b):
            line = [(start + k * b + m, 1.0) for k in range(a)]
            rows.add([*line, (int(first[j]) + m, -1.0)], 0.0)
    spent = np.concatenate([spent, *extra])
    total = len(spent)
    # costs of 1e9 FLOPs beside losses of 1e-3 would drown in the solver's tolerances
    scale = max(float(np.abs(spent).max(initial=0.0)), 1e-30)
    objective = np.concatenate([losses, np.zeros(total - count)])
    loss_scale = max(float(np.abs(losses).max(initial=0.0)), 1e-30)
    room = (problem.budget * (1 + 1e-9) - costs.fixed) / scale
    result = milp(
        objective / loss_scale,
        integrality=np.concatenate([np.ones(count), np.zeros(total - count)]),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(rows.matrix(total), rows.values, rows.values),
            LinearConstraint(spent[None] / scale, -np.inf, room),
        ],
        options={"time_limit": time_limit_s, "mip_rel_gap": _GAP},
    )
    if result.x is None:
        return None
    choice = np.array(
        [
            int(np.argmax(result.x[first[idx] : first[idx + 1]]))
            for idx in range(len(problem.units))
        ],
        np.int64,
    )
    bound = getattr(result, "mip_dual_bound", None)
    return choice, -np.inf if bound is None else float(bound) * loss_scale


class _Rows:
    """Equations of a sparse matrix under construction."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.values: list[float] = []

    def add(self, line: list[tuple[int, float]], value: float) -> None:
        row = len(self.values)
        self.entries += [(row, column, factor) for column, factor in line]
        self.values.append(value)

    def matrix(self, columns: int) -> Any:
        rows, cols, data = zip(*self.entries, strict=True)
        return coo_array((data, (rows, cols)), shape=(len(self.values), columns)).tocsr()
