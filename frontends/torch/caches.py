"""Caches of `transformers` as arguments and results: trees of tensors that an export can take."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from torch.utils import _pytree as pytree


def register_caches() -> None:
    """Registers the cache classes of `transformers`, where it is loaded and has not done so."""
    transformers = sys.modules.get("transformers")
    if transformers is None or "transformers.cache_utils" not in sys.modules:
        return
    from transformers.integrations.executorch import register_dynamic_cache_export_support

    register_dynamic_cache_export_support()
    cache_utils = sys.modules["transformers.cache_utils"]
    cache = cache_utils.EncoderDecoderCache
    if cache not in pytree.SUPPORTED_NODES:
        names = ["self_attention_cache", "cross_attention_cache"]
        keys = [pytree.MappingKey(name) for name in names]
        pytree.register_pytree_node(
            cache,
            lambda both: ([both.self_attention_cache, both.cross_attention_cache], names),
            lambda children, context: cache(*children),
            serialized_type_name="transformers.cache_utils.EncoderDecoderCache",
            flatten_with_keys_fn=lambda both: (
                list(zip(keys, [both.self_attention_cache, both.cross_attention_cache],
                         strict=True)),
                names,
            ),
        )  # fmt: skip


def spread(spec: pytree.TreeSpec, wanted: Any) -> Any:
    """Returns `wanted` for every leaf of a tree, as nested lists and dicts."""
    if spec.is_leaf():
        return wanted
    children = [spread(child, wanted) for child in spec.children()]
    if spec.type in (dict, OrderedDict):
        return spec.type(zip(spec.context, children, strict=True))
    if spec.type is pytree.namedtuple:
        return spec.context(*children)
    return tuple(children) if spec.type is tuple else children
