"""Pipeline strings and recipes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft import passes
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.pipeline import check_options, format_pipeline, parse_pipeline, parse_steps
from regraft.passes.protocol import Context, Contract, Exact, PassResult
from regraft.passes.recipe import Recipe, format_recipe, parse_recipe


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Prune:
    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Exact()

    target: str = "flops:0.5"
    round_to: int = 1
    keep: tuple[str, ...] = ()
    ratio: float | None = None
    dry: bool = False
    mode: Mode = Mode.FAST
    norm: Literal["l1", "l2"] = "l2"

    def run(self, module: Module, ctx: Context) -> PassResult:
        return PassResult(False)


@dataclass(frozen=True, slots=True)
class Needs:
    name: ClassVar[str] = "needs-it"
    contract: ClassVar[Contract] = Exact()

    size: int

    def run(self, module: Module, ctx: Context) -> PassResult:
        return PassResult(False)


PASSES = (Prune, Needs)


def test_parse_reads_options_of_every_kind() -> None:
    (made,) = parse_pipeline(
        'prune{target=params:0.3, round-to=8, keep=[a,"b,c"], ratio=0.25,'
        " dry=yes, mode=slow,norm=l1}",
        PASSES,
    )
    assert made == Prune("params:0.3", 8, ("a", "b,c"), 0.25, True, Mode.SLOW, "l1")


def test_parse_reads_snake_case_and_none() -> None:
    assert parse_pipeline("prune{round_to=4,ratio=none}", PASSES) == [Prune(round_to=4)]


def test_empty_pipeline_has_no_passes() -> None:
    assert parse_pipeline("  ", PASSES) == []


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("prun", "unknown pass `prun`", "did you mean `prune`?"),
        ("prune{round-too=8}", "no option `round-too`", "did you mean `round-to`?"),
        ("prune{round-to=x}", "`x` is not a whole number", None),
        ("prune{mode=quick}", "`quick` is not allowed", None),
        ("prune{norm=l3}", "`l3` is not allowed", None),
        ("prune{dry=maybe}", "`maybe` is not allowed", None),
        ("prune{dry=yes,dry=no}", "given twice", None),
        ("needs-it", "needs option `size`", "needs-it{size=…}"),
        ("prune{dry", "expected `=`", None),
        ("prune{dry=yes", "expected `,` or `}`", None),
        ("prune}", "expected `,`", None),
        ('prune{target="a}', "expected a closing quote", None),
    ],
)
def test_parse_names_what_is_wrong(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=r".") as error:
        parse_pipeline(text, PASSES)
    assert message in error.value.message
    assert error.value.exit_code == 2
    if hint is not None:
        assert hint in (error.value.hint or "")


def test_error_says_the_character() -> None:
    with pytest.raises(UsageError, match="character 7"):
        parse_steps("prune{,}")


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)


@given(
    st.lists(
        st.builds(
            Prune, texts, st.integers(), st.lists(texts, max_size=3).map(tuple),
            st.none() | st.floats(allow_nan=False), st.booleans(), st.sampled_from(Mode),
            st.sampled_from(["l1", "l2"]),
        ),
        max_size=3,
    )
)  # fmt: skip
def test_print_then_parse_is_the_identity(passes: list[Prune]) -> None:
    text = format_pipeline(passes)
    again = parse_pipeline(text, PASSES)
    assert again == passes
    assert format_pipeline(again) == text


def test_recipe_round_trip_keeps_passes_and_settings() -> None:
    recipe = Recipe((Prune(round_to=8), Needs(3)), {"target": "onnx", "freeze": {"batch": 1}})
    again = parse_recipe(format_recipe(recipe), PASSES)
    assert again.passes == recipe.passes
    assert again.settings == recipe.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes: [prune", "not valid YAML"),
        ("target: onnx", "has no `passes` list"),
        ("passes: prune", "`passes` is not a list"),
        ("passes: []\nsead: 1", "unknown key `sead`"),
        ("regraft: 2\npasses: []", "recipe format 2 is not known"),
        ("passes:\n- 3", "passes[0]: expected `name`"),
        ("passes:\n- prune: {round-too: 3}", "no option `round-too`"),
        ("passes:\n- !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_recipe_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=r".") as error:
        parse_recipe(text, PASSES)
    assert message in error.value.message


@dataclass(frozen=True, slots=True)
class Reads:
    """Has a path as an option."""

    name: ClassVar[str] = "reads"
    contract: ClassVar[Contract] = Exact()

    plan: Path | None = None

    def run(self, module: Module, ctx: Context) -> PassResult:
        return PassResult(False)


@dataclass(frozen=True, slots=True)
class Maps:
    """Has an option that no pipeline can write."""

    name: ClassVar[str] = "maps"
    contract: ClassVar[Contract] = Exact()

    ratios: Mapping[str, float] | None = None

    def run(self, module: Module, ctx: Context) -> PassResult:
        return PassResult(False)


def test_paths_are_options() -> None:
    (made,) = parse_pipeline('reads{plan="a b/plan.json"}', (Reads,))
    assert made == Reads(Path("a b/plan.json"))
    assert parse_pipeline(format_pipeline([made]), (Reads,)) == [made]


def test_options_that_no_pipeline_can_write_are_named() -> None:
    for cls in (Prune, Needs, Reads):
        check_options(cls, "it")
    with pytest.raises(UsageError, match="plugin `p`: option `ratios` is a"):
        check_options(Maps, "plugin `p`")


def test_every_pass_can_be_written() -> None:
    for cls in passes.PASSES:
        check_options(cls, cls.name)
