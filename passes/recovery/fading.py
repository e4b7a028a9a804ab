"""Results that fade while a module is trained, and what is left when they are gone.

`whole + share * (part - whole)` goes from a result to the one that takes its place: training draws
the share to one, and the whole goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from regraft.ir.constants import weight
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph, Node
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.passes.cleanup.dead import drop_dead_code

KEY = "fading"
"""Of the module's metadata: names of the weights that are shares, f[] each."""

_PART = 0.5
"""Of the steps, in which results fade; the others train what is left alone."""


def let_fade(module: Module, names: Iterable[str]) -> None:
    """Records that training draws shares to one."""
    module.meta[KEY] = tuple(sorted({*rising_shares(module), *names}))


def rising_shares(module: Module) -> tuple[str, ...]:
    """Returns the names of the weights that training draws to one."""
    return tuple(module.meta.get(KEY, ()))


def share_at(first: float, step: int, steps: int) -> float:
    """Returns a share before a step, from 0: half a cosine from the first one to one.

    Source: Wei et al., Building on Efficient Foundations, 2024, section 4.
    """
    progress = min(1.0, step / max(1.0, _PART * steps))
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


def drop_faded(module: Module) -> int:
    """Removes what shares of one leave nothing of, in place; returns how many shares there were.

    Raises:
        UnsupportedError: When one is not where it was written.
    """
    faded = set(rising_shares(module))
    if not faded:
        return 0
    for node in list(module.graph):
        if node.op is weight and module.weights.resolve(node.attrs["name"]) in faded:
            for user in list(node.output.users):
                _without(user)
    drop_dead_code(module)
    del module.meta[KEY]
    return len(faded)


def _without(product: Node | Graph) -> None:
    """Lets `whole + share * (part - whole)` be `part`."""
    if isinstance(product, Node) and product.op is arithmetic.mul:
        made = [v.producer for v in product.inputs if v is not None and v.producer is not None]
        beyond = next((node for node in made if node.op is arithmetic.sub), None)
        users = list(product.output.users)
        if beyond is not None and len(users) == 1 and isinstance(users[0], Node):
            part = beyond.inputs[0]
            if part is not None and users[0].op is arithmetic.add:
                users[0].output.replace_all_uses_with(part)
                return
    raise UnsupportedError(
        "pass `recover`: a share that training draws to one is not where it was written",
        hint="recover right after `factorize`",
    )
