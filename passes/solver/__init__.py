"""The budget solver: what every unit of a model may cost, and what that loses, allocated at once.

It knows nothing of pruning, bit widths or layers: a unit is a name with options, each with a cost
and a loss.
"""

from regraft.passes.solver.additivity import Additivity, additivity
from regraft.passes.solver.curves import CurveStore, LossSource, measure_curves
from regraft.passes.solver.drawing import Words, solver_plots
from regraft.passes.solver.problem import (
    Costs,
    PairwiseCosts,
    Problem,
    SeparateCosts,
    Solution,
    Unit,
)
from regraft.passes.solver.solve import METHODS, Method, solve

__all__ = [
    "METHODS",
    "Additivity",
    "Costs",
    "CurveStore",
    "LossSource",
    "Method",
    "PairwiseCosts",
    "Problem",
    "SeparateCosts",
    "Solution",
    "Unit",
    "Words",
    "additivity",
    "measure_curves",
    "solve",
    "solver_plots",
]
