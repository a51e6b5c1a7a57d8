"""Pipelines as text and back, with every type of option."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import GraphModule

from fxcompress.errors import UnknownPassError
from fxcompress.pipeline import Pass, PassContext, PassResult, Pipeline, Semantics, registry


@dataclass(frozen=True)
class Options(Pass):
    """Every type of option."""

    name: ClassVar[str] = "options"
    number: int = 1
    ratio: float = 0.5
    flag: bool = False
    text: str = "x"
    maybe: int | None = None
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    semantic: Semantics = Semantics.EXACT

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(module, False)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(registry._entries()) | {"options": EntryPoint("options", "test_pipeline_text:Options", registry.GROUP)}
    monkeypatch.setattr(registry, "_entries", lambda: known)
    monkeypatch.setattr(registry, "lookup", lambda name, real=registry.lookup: Options if name == "options" else real(name))


texts = st.text(st.characters(codec="utf-8"), max_size=8)
options = st.builds(
    Options,
    number=st.integers(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    text=texts,
    maybe=st.none() | st.integers(),
    names=st.lists(texts, max_size=3).map(tuple),
    numbers=st.lists(st.integers(), max_size=3).map(tuple),
    semantic=st.sampled_from(Semantics),
)


@pytest.mark.usefixtures("registered")
class TestText:
    @given(st.lists(options, max_size=3))
    def test_round_trip(self, passes: list[Pass]) -> None:
        pipeline = Pipeline(tuple(passes))
        assert Pipeline.parse(str(pipeline)) == pipeline
        assert str(Pipeline.parse(str(pipeline))) == str(pipeline)

    @given(st.lists(options, max_size=2), st.lists(options, max_size=2))
    def test_sum(self, left: list[Pass], right: list[Pass]) -> None:
        a, b = Pipeline(tuple(left)), Pipeline(tuple(right))
        assert (a + b).passes == (*left, *right)
        assert Pipeline.of(str(a), b) == a + b


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownPassError, match="there is no pass 'fold-nrom'") as caught:
        Pipeline.parse("fold-nrom")
    assert "did you mean fold-norm" in str(caught.value)
    with pytest.raises(UnknownPassError, match="has no option 'ratio'"):
        Pipeline.parse("functionalize{ratio=1}")
