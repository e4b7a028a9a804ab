"""Equivalence folds: scales, shifts, orders and rotations moved between neighbours, exactly."""

from regraft.passes.equivalence.awq import Awq
from regraft.passes.equivalence.equalize import Equalize
from regraft.passes.equivalence.fold_exponent_bias import FoldExponentBias
from regraft.passes.equivalence.permute_outliers import PermuteOutliers
from regraft.passes.equivalence.reparam_norms import ReparamNorms
from regraft.passes.equivalence.rotate import Rotate
from regraft.passes.equivalence.smooth import Smooth
from regraft.passes.equivalence.split_weights import SplitWeights
from regraft.passes.protocol import Pass

__all__ = [
    "PASSES",
    "Awq",
    "Equalize",
    "FoldExponentBias",
    "PermuteOutliers",
    "ReparamNorms",
    "Rotate",
    "Smooth",
    "SplitWeights",
]

PASSES: tuple[type[Pass], ...] = (
    Equalize, Smooth, Awq, ReparamNorms, Rotate, PermuteOutliers, SplitWeights, FoldExponentBias,
)  # fmt: skip
