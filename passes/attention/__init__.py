"""Surgery on attention: other weights than those of a softmax, other mixers, moved norms."""

from regraft.passes.attention.replace_softmax import ReplaceSoftmax
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (ReplaceSoftmax,)
