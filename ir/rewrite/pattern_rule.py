"""Pattern rules: what users write. A pattern is a function of its variables, traced by calling it.

```python
class DoubleNegative(Rule):  # neg(neg(x)) -> x
    def pattern(self, p, x):
        return p.neg(p.neg(x))

    def apply(self, plan, b, x):
        return x
```
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite.match import Match, match
from regraft.ir.rewrite.pattern import AnyOf, Apply, Patterns, Variable
from regraft.ir.rewrite.rule import Reject

if TYPE_CHECKING:
    from regraft.ir.rewrite.engine import Rewriter
    from regraft.ir.rewrite.explain import Trace


class Rule:
    """Base of pattern rules; write `pattern` and `apply`, and `guard` where the match may not do.

    `guard` and `apply` take the variables they need by name; the leading parameters (match; plan
    and builder) are positional. Keep no state on the rule: what `guard` finds out is its plan.
    """

    @property
    def name(self) -> str:
        """The rule's name: the class name in kebab-case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    def __str__(self) -> str:
        return self.name

    def pattern(self, p: Patterns, *args: Any, **kwargs: Any) -> Apply | AnyOf:
        """Returns the pattern; further parameters are the variables."""
        raise NotImplementedError

    def guard(self, m: Match, *args: Any, **kwargs: Any) -> Any:
        """Returns a plan for `apply`, or a `Reject` that says why the match will not do."""
        return m

    def apply(self, plan: Any, b: Builder, *args: Any, **kwargs: Any) -> Any:
        """Returns the value (or values) that replace the root's results."""
        raise NotImplementedError

    def compile(self) -> CompiledRule:
        """Traces the pattern."""
        names = _parameters(self.pattern)[1:]
        root = self.pattern(Patterns(), *map(Variable, names))
        options = root.options if isinstance(root, AnyOf) else (root,)
        roots = tuple(option for option in options if isinstance(option, Apply))
        if len(roots) != len(options):
            raise TypeError(f"rule `{self.name}`: the pattern must start at an operator")
        guard_takes = tuple(name for name in _parameters(self.guard)[1:] if name in names)
        apply_takes = tuple(name for name in _parameters(self.apply)[2:] if name in names)
        return CompiledRule(self.name, self, roots, guard_takes, apply_takes)


def _parameters(method: Callable[..., Any]) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A traced pattern rule, as the engine runs it."""

    name: str
    rule: Rule
    roots: tuple[Apply, ...]
    guard_takes: tuple[str, ...]
    apply_takes: tuple[str, ...]

    def wants(self, op: OpSpec) -> bool:
        """Returns whether a root of the pattern is this operator."""
        return any(root.op is op for root in self.roots)

    def apply_at(self, node: Node, rw: Rewriter, trace: Trace | None) -> bool | Reject:
        """Matches at `node`, asks the guard and replaces."""
        found = next((m for root in self.roots if (m := match(root, node, trace))), None)
        if found is None:
            return False
        values = found.values
        plan = self.rule.guard(found, **{name: values.get(name) for name in self.guard_takes})
        if isinstance(plan, Reject):
            return plan
        made = self.rule.apply(
            plan, rw.builder(node), **{name: values.get(name) for name in self.apply_takes}
        )
        results: Sequence[Value] = (made,) if isinstance(made, Value) else tuple(made)
        rw.replace(node, *results)
        return True
