"""Quality meters that all families share: what a lossy rewrite costs, as numbers.

Embedding similarity, perplexity, KL divergence with top-1 agreement, and accuracy. Meters take
arrays batch by batch; `measure` runs models over data.
"""

from __future__ import annotations

from regraft.passes.quality.correlation import spearman
from regraft.passes.quality.embedding import EmbeddingMeter, EmbeddingQuality, Pooling, pooled
from regraft.passes.quality.measure import (
    accuracy,
    divergence,
    embedding_similarity,
    perplexity,
)
from regraft.passes.quality.predictions import (
    IGNORED,
    Accuracy,
    AccuracyMeter,
    Divergence,
    DivergenceMeter,
    Perplexity,
    PerplexityMeter,
    next_tokens,
)

__all__ = [
    "IGNORED",
    "Accuracy",
    "AccuracyMeter",
    "Divergence",
    "DivergenceMeter",
    "EmbeddingMeter",
    "EmbeddingQuality",
    "Perplexity",
    "PerplexityMeter",
    "Pooling",
    "accuracy",
    "divergence",
    "embedding_similarity",
    "next_tokens",
    "perplexity",
    "pooled",
    "spearman",
]
