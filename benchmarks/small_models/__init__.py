"""Small models with trained weights, made by scripts from data that is at hand, and kept.

```py
from benchmarks.small_models import get

model = get("char-lm", seed=1)  # trained on first use, kept in .cache/models
model.module(), model.module("decode"), model.net(), model.held_out()
```

`python -m benchmarks.small_models` trains what is missing and prints how good they are.
"""

from benchmarks.small_models.store import CACHE, KINDS, Kind, SmallModel, get, get_kind

__all__ = ["CACHE", "KINDS", "Kind", "SmallModel", "get", "get_kind"]
