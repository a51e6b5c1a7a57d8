"""A difference in the terminal: never more lines than a screen has, the worst first."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_differences import COSTS, empty, hostile, huge, place, resnet, small

from fxcompress.errors import InputError
from fxcompress.report.difference import (
    Change,
    ContractChange,
    CostChange,
    Difference,
    Gate,
    LatencyChange,
    NodeChange,
    NumbersChange,
    OutputNumbers,
)

MADE = {"empty": empty, "small": small, "resnet": resnet, "huge": huge, "hostile": hostile}


@pytest.mark.parametrize("width", [1, 40, 80, 96, 200])
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_forty_lines_of_the_width(made: object, width: int) -> None:
    text = made().to_text(width)  # type: ignore[operator]
    lines = text.splitlines()
    assert 2 <= len(lines) <= 40
    assert max(map(len, lines)) <= max(width, 40)
    assert all(line.isprintable() for line in lines)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@given(st.lists(st.integers(0, 60), min_size=5, max_size=5))
def test_forty_lines_for_any_sizes(sizes: list[int]) -> None:
    changed, gates, contract, added, outputs = sizes
    nodes = [place(f"n{i}", f"kind{i}") for i in range(60)]
    made = Difference(
        "a",
        "b",
        60,
        60,
        60,
        added=tuple(nodes[:added]),
        changed=tuple(NodeChange(n, n, 1.0, (Change("attribute", f"x{i}", 0, 1),)) for i, n in enumerate(nodes[:changed])),
        contract=tuple(ContractChange("input", "name", f"i{i}", f"i{i}", f"j{i}") for i in range(contract)),
        numbers=NumbersChange(tuple(OutputNumbers(f"o{i}", 1.0, 3.0, 0.5, None, False) for i in range(outputs))),
        gates=tuple(Gate(f"g{i}", False, "1", "2") for i in range(gates)),
    )
    lines = made.to_text().splitlines()
    assert len(lines) <= 40
    total = changed + gates + contract + added + outputs
    if total <= 25:  # 15 lines for the head, titles and what is between them
        assert sum(line[10:11].strip() != "" for line in lines[2:]) == total  # everything is told
    elif total > 40:
        assert any("more; the other forms list them" in line for line in lines)


def test_what_is_left_out_is_counted() -> None:
    nodes = [place(f"n{i}", f"kind{i}") for i in range(500)]
    lines = empty(added=tuple(nodes)).to_text().splitlines()
    shown = sum("added  (" in line for line in lines)
    assert shown == 36  # 40 without two of the head, one between, one for the remark
    assert lines[-1].strip() == f"... and {500 - shown} more; the other forms list them"


def test_no_difference_is_one_sentence() -> None:
    assert empty().to_text() == "net\nno difference: all 70 nodes match\n"
    assert "no difference" in dataclasses.replace(empty(), head="other").to_text().splitlines()[1]


def test_no_difference_with_gates() -> None:
    text = empty(gates=(Gate("macs", True, "at most 2", "1"), Gate("params", True, "at most 2", "1"))).to_text()
    assert "all 2 gates hold; no difference" in text
    assert "hold  macs, params" in text


def test_only_costs_differ() -> None:
    text = empty(cost=(CostChange("peak_bytes", 1024, 2048),)).to_text()
    assert "the same graph; only costs or numbers differ" in text
    assert "no difference" not in text
    assert "peak activations  1.00 KiB  2.00 KiB  x2.00" in text


def test_the_worst_is_first() -> None:
    text = small().to_text()
    titles = [line.split()[0] for line in text.splitlines()[2:] if line[:1].isalpha() and line[:5] != "moved"]
    assert titles == ["gates", "contract", "numbers", "graph", "changed", "merged", "cost", "latency"]
    assert text.index("FAIL  weight_bytes: measured 6.1 MB, limit at most 5 MB (the phone has no more room)") < text.index("hold  macs")
    assert text.index("rewired") < text.index("1 removed") < text.index("- relu act.relu: removed")


def test_everything_is_told() -> None:
    text = small().to_text()
    for part in (
        "net@main -> net@feature",
        "1 of 2 gates violated",
        "output logits: name logits -> scores",
        "SQNR 31.9 dB, largest error 3.1e-02, cosine 0.99968, top-1 agrees on 98.4 %",
        "quality drops first at gelu act.gelu from 61.0 dB to 33.5 dB",
        "~ add add: rewired (operand 1: stem -> block)  (app/models/net.py:35)",
        "+ gelu act.gelu: added  (app/models/net.py:31)",
        "> layer_norm norm: moved (after stem -> after head)",
        "* conv stem: stride (1, 1) -> (2, 2)  (app/models/net.py:22)",
        "* linear head: weight changed by 0.1 %",
        "= c1: conv + batch_norm -> conv",
        "weights           44.6 MiB  5.82 MiB  x0.13",
        "~ 12.3 ms -> 12.0 ms, no significant difference (p = 0.31)",
    ):
        assert part in text
    assert str(small()) == text


def test_a_whole_network_is_a_few_lines() -> None:
    text = resnet().to_text()
    assert len(text.splitlines()) <= 30
    for part in ("17 times: conv + batch_norm + relu -> conv+relu", "18 nodes: int8 instead of float", "18 nodes: weight float32 -> int8"):
        assert part in text
    assert "64x64x3x3 -> 48x48x3x3" in text


def test_a_source_without_room_is_left_out() -> None:
    long = dataclasses.replace(place("x" * 40, "conv"), source="/a/" + "y" * 99 + "/z.py:3")
    assert empty(removed=(long,)).to_text(80).splitlines()[-1].endswith(": removed")


def test_sentences_have_two_lines_where_there_is_room() -> None:
    many = tuple(dataclasses.replace(place(f"features.block{i}.layer.conv{i}"), index=i) for i in range(30))
    lines = empty(removed=many).to_text(96).splitlines()[3:]
    assert len(lines) == 2
    assert lines[0].startswith("graph     - 30 conv: removed  (features.block0.layer.conv0, ")
    shown = sum(line.count("features.block") for line in lines)
    assert shown > 2
    assert lines[1].endswith(f" and {30 - shown} more)")


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("~", "~ 1.00 ms -> 2.00 ms, no significant"), ("slower", "2.00x slower (p = 0.001)"), ("faster", "2.00x faster")],
)
def test_latency(verdict: str, words: str) -> None:
    assert words in empty(numbers=NumbersChange(latency=LatencyChange(1.0, 2.0, 0.001, verdict))).to_text()


def test_small_changes_of_cost_are_seen() -> None:
    text = empty(cost=(CostChange("params", 11_689_512, 11_689_513),)).to_text()
    assert "(+1)" in text
    assert all(name not in text for name in ("inf", "nan"))
    assert empty(cost=(*COSTS, CostChange("params", 0, 5), CostChange("params", 5, 0))).to_text()


def test_numbers_that_are_none() -> None:
    odd = (
        OutputNumbers("a", float("nan"), float("nan"), float("nan"), 0.0, True),
        OutputNumbers("b", float("inf"), -3.0, -1.0, 1.0, False),
    )
    lines = empty(numbers=NumbersChange(odd, note="only one of the two has numbers")).to_text().splitlines()
    assert lines[3].startswith("numbers   a: SQNR about nan dB")
    assert "cosine nan, top-1 agrees on 0 %" in lines[3]
    assert "b: SQNR -3.0 dB, largest error inf, cosine -1" in lines[4]
    assert "only one of the two has numbers" in lines[5]


@pytest.mark.parametrize("form", ["text", "txt", ".txt", "md", "json", "junit", "xml", "github", "html", ".HTML"])
def test_every_form_has_a_name(form: str) -> None:
    assert small().render(form).strip()


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(InputError, match="no difference in the form 'pdf'") as error:
        small().render("pdf")
    assert "markdown" not in str(error.value)
    assert "junit" in str(error.value)


def test_notebooks_show_the_text() -> None:
    assert hostile()._repr_html_().startswith("<pre>")
    assert "<script" not in hostile()._repr_html_()
    assert "<img" not in hostile()._repr_html_()
