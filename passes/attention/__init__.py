"""Surgery on attention: other weights than those of a softmax, other mixers, moved norms."""

from regraft.passes.attention.attach_memory import AttachMemory
from regraft.passes.attention.augment_blocks import AugmentBlocks
from regraft.passes.attention.fold_averaging_heads import FoldAveragingHeads
from regraft.passes.attention.move_norm import FoldNormGains, MoveNorm
from regraft.passes.attention.replace_mixer import ReplaceMixer
from regraft.passes.attention.replace_softmax import ReplaceSoftmax
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (
    ReplaceSoftmax,
    ReplaceMixer,
    FoldAveragingHeads,
    MoveNorm,
    FoldNormGains,
    AugmentBlocks,
    AttachMemory,
)
