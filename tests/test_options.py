"""Options of passes and their text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import GraphModule

from fxcompress.errors import PipelineError, UnknownPassError
from fxcompress.pipeline import Pass, PassContext, PassResult
from fxcompress.pipeline.options import build, parse_call, pass_text, split


class Norm(Enum):
    L1 = "first"
    L2 = "second"


@dataclass(frozen=True)
class Sample(Pass):
    name: ClassVar[str] = "sample"
    count: int = 3
    ratio: float = 0.5
    flag: bool = False
    word: str = "a"
    maybe: float | None = None
    names: tuple[str, ...] = ()
    norm: Norm = Norm.L1
    mode: Literal["fast", "small"] = "fast"
    either: int | str = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(module, False)


def parsed(text: str) -> Any:
    name, options = parse_call(text)
    assert name == "sample"
    return build(Sample, options)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("sample{count=7}", "count", 7),
        ("sample{count=-0}", "count", 0),
        ("sample{ratio=2}", "ratio", 2.0),
        ("sample{ratio=1e-3}", "ratio", 1e-3),
        ("sample{flag=true}", "flag", True),
        ("sample{flag=False}", "flag", False),
        ("sample{word=head}", "word", "head"),
        ("sample{word='a, b'}", "word", "a, b"),
        ('sample{word="{"}', "word", "{"),
        ("sample{word=1}", "word", "1"),
        ("sample{maybe=none}", "maybe", None),
        ("sample{maybe=1}", "maybe", 1.0),
        ("sample{names=[head,'tail, end']}", "names", ("head", "tail, end")),
        ('sample{names=["a"]}', "names", ("a",)),
        ("sample{names=one}", "names", ("one",)),
        ("sample{names=[]}", "names", ()),
        ("sample{norm=l2}", "norm", Norm.L2),
        ("sample{norm=second}", "norm", Norm.L2),
        ("sample{mode=small}", "mode", "small"),
        ("sample{either=x}", "either", "x"),
        ("sample{either=4}", "either", 4),
        (" sample{ count = 4 , ratio = 1 } ", "count", 4),
    ],
)
def test_values_are_read_by_the_type_of_the_field(text: str, field: str, value: object) -> None:
    found = getattr(parsed(text.strip()), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "sample{count=1.5}",
        "sample{count=true}",
        "sample{count=many}",
        "sample{count=none}",
        "sample{ratio=half}",
        "sample{flag=1}",
        "sample{flag=yes}",
        "sample{word=[a]}",
        "sample{word=none}",
        "sample{maybe=x}",
        "sample{names=[[a]]}",
        "sample{norm=l3}",
        "sample{mode=large}",
    ],
)
def test_a_value_of_another_type_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(PipelineError, match="is not of type") as caught:
        parsed(text)
    assert text.partition("=")[2][:-1] in str(caught.value)


def test_what_the_pass_itself_refuses() -> None:
    with pytest.raises(PipelineError, match="'sample' refuses its options: count must not be negative"):
        parsed("sample{count=-1}")


def test_unknown_options_name_the_known_ones() -> None:
    with pytest.raises(UnknownPassError, match="has no option 'cuont'") as caught:
        parsed("sample{cuont=1}")
    assert "count" in str(caught.value)


@pytest.mark.parametrize("text", ["sample{count=1", "sample{count}", "sample{word='}", "sample{names=[a}", "sample{count=1}x", "sample}"])
def test_text_that_cannot_be_read(text: str) -> None:
    with pytest.raises(PipelineError):
        [parsed(part) for part in split(text)]


def test_defaults_are_left_out_of_the_text() -> None:
    assert pass_text(Sample()) == "sample"
    assert pass_text(Sample(count=4, norm=Norm.L2)) == "sample{count=4,norm=l2}"
    assert pass_text(Sample(names=("a", "b c"))) == "sample{names=[a,'b c']}"
    assert pass_text(Sample(word="True")) == "sample{word='True'}"


@given(
    st.builds(
        Sample,
        count=st.integers(0),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        flag=st.booleans(),
        word=st.text(st.characters(codec="utf-8")),
        maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        names=st.lists(st.text(st.characters(codec="utf-8"))).map(tuple),
        norm=st.sampled_from(Norm),
        mode=st.sampled_from(["fast", "small"]),
        either=st.integers() | st.text(st.characters(codec="utf-8")),
    )
)
def test_round_trip(sample: Sample) -> None:
    text = pass_text(sample)
    assert list(split(text)) == [text]
    assert parsed(text) == sample


@given(st.text(st.sampled_from("ab,=[]{}()'\"\\ 1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        for part in split(text):
            parse_call(part)
    except PipelineError:
        pass
