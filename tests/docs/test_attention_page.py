"""docs/attention.md names every variant with its options and its paper."""

from __future__ import annotations

import pytest

from docs.generate import FOLDER
from regraft.passes.attention.variants import VARIANTS, Variant

PAGE = (FOLDER / "attention.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_the_page_has_the_variant(variant: Variant) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{variant.name}` |")]
    assert len(rows) == 1
    assert variant.about in rows[0]
    assert variant.source in rows[0]
    for name, default in variant.options.items():
        assert f"`{name}={default:g}`" in rows[0]
