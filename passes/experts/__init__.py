"""Mixtures of experts: made from feed-forward blocks, thinned out, merged, turned back."""

from regraft.passes.experts.balance_experts import BalanceExperts
from regraft.passes.experts.extract_experts import ExtractExperts
from regraft.passes.experts.merge_experts import MergeExperts
from regraft.passes.experts.moe_to_dense import MoeToDense
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.experts.prune_experts import PruneExperts
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (
    UpcycleFfn,
    PartitionFfn,
    ExtractExperts,
    BalanceExperts,
    PruneExperts,
    MergeExperts,
    MoeToDense,
)
