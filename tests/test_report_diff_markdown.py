"""A difference as Markdown: within GitHub's limits, and nothing of the model is markup."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_differences import HOSTILE, empty, hostile, huge, place, resnet, side, small

from fxcompress.report import diff_mermaid
from fxcompress.report.diff_markdown import COMMENT_LIMIT, SUMMARY_LIMIT
from fxcompress.report.difference import Change, Gate, Group, Match, NodeChange, NumbersChange, Rewired, Sides
from fxcompress.report.inert import code, mermaid, prose

MADE = {"empty": empty, "small": small, "resnet": resnet, "huge": huge, "hostile": hostile}


def outside_code(text: str) -> str:
    """What is left of a Markdown text without its fences, its code spans (CommonMark 6.1: as many backticks close as opened) and what a
    backslash makes a plain character (2.4)."""
    text = re.sub(r"^```mermaid\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\\[!-/:-@\[-`{-~]|(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("limit", [3000, COMMENT_LIMIT, SUMMARY_LIMIT])
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_within_the_limits(made: object, limit: int) -> None:
    text = made().to_markdown(limit)  # type: ignore[operator]
    assert len(text.encode()) <= limit
    assert text.startswith("## `")
    assert text.count("<details>") == text.count("</details>")
    assert text.count("```") % 2 == 0 or made is hostile


def test_what_is_left_out_is_counted() -> None:
    text = huge().to_markdown()
    assert re.search(r"^\.\.\. and 950 more; the JSON and HTML forms list all\.$", text, re.MULTILINE)  # outputs
    rows = text.split("<details>")[1].split("</details>")[0]
    shown = sum(line.startswith("| `") for line in rows.splitlines())
    left = re.search(r"\.\.\. and (\d+) more", rows)
    assert left is not None
    assert shown > 50
    assert shown + int(left[1]) == 2000  # the nodes that are gone, and those of head


def test_the_default_fits_a_comment() -> None:
    assert len(huge().to_markdown().encode()) <= 65_536
    assert len(huge().to_markdown(SUMMARY_LIMIT)) > 65_536


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_tables_are_tables(made: object) -> None:
    """Every row has as many cells as its head, also by the rule that a pipe in a code span ends a cell."""
    for block in made().to_markdown().split("\n\n"):  # type: ignore[operator]
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
            assert re.fullmatch(r"\|( :?-+:? \|)+", rows[1])


@pytest.mark.parametrize(
    "text", [HOSTILE, "a`b", "``", "a|b", "\\", "a\\|b", "<b>", "@team/x", "#12", "\n\n# x", "```\n", "https://x.y", "$x$", ""]
)
def test_hostile_names_are_inert(text: str) -> None:
    left = outside_code(hostile(text).to_markdown())
    left = re.sub(r"^(#{2,3} |\|[ :|-]+\|$)", "", left, flags=re.MULTILINE)  # our headings and rules
    assert not re.search(r"[`<\[\]]|!\[|@\w|#\d|://|www\.|GH-\d|\$", left.replace("<details>", "").replace("</details>", ""))


@given(st.text())
def test_code_is_one_code_span(text: str) -> None:
    made = code(text)
    assert made == "" or re.fullmatch(r"`[^`|\n\r]+`", made)
    assert made.isprintable()


@given(st.text(alphabet="ab1 .:/@#-_*[]()<>`|\\$~!&{}+=\n"))
def test_prose_has_no_markup(text: str) -> None:
    made = prose(text)
    assert not re.search(r"[`<>\[\]{}*_#|~$&!\\]", outside_code(made))
    assert not re.search(r"[@#]\w|://", re.sub(r"\\", "", made))
    assert "\n" not in made


@pytest.mark.parametrize("text", ["see www.x.org", "WWW.x.org", "as in GH-12", "gh-12", "http://x", "by @octocat", "a@b.c", "#7"])
def test_prose_links_nowhere(text: str) -> None:
    flat = prose(text).replace("\\", "")
    assert flat != text
    assert not re.search(r"(?i)www\.|gh-\d|://|@\w|#\d", flat)
    assert flat.replace("\u2060", "") == text


def test_what_matters_is_there() -> None:
    text = small().to_markdown()
    for part in (
        "## `net@main` → `net@feature`",
        "❌ **1 of 2 gates violated.**",
        "| ❌ | `weight_bytes` | `6.1 MB` | `at most 5 MB` | the phone has no more room |",
        "| ✅ | `macs` |",
        "| output | `logits` | name | `logits` | `scores` |",
        "| `[0]` | 31.9 dB | 3.1e-02 | 0.99968 | 98.4 % |",
        "Quality drops first at `gelu` `act.gelu` from 61.0 dB to 33.5 dB (`app/models/net.py:31`).",
        "| weights | 44.6 MiB | 5.82 MiB | x0.13 |",
        "no significant difference (p = 0.31)",
        "| `~` | `add` `add` | rewired (operand 1: `stem` → `block`) | `app/models/net.py:35` |",
        "| `=` | `c1` | `conv + batch_norm -> conv` |",
    ):
        assert part in text
    assert "<details>" not in text  # all is told


def test_nodes_one_by_one_are_folded() -> None:
    table, folded = resnet().to_markdown().split("<details><summary>All 20 nodes, one by one</summary>\n\n")
    assert "| 17 times |" in table
    row = next(line for line in folded.splitlines() if "`layer1.0.conv1`" in line)
    for part in ("int8 instead of float", "`weight` `float32` → `int8`", "16 channels", "`scale 0.042, zero point 3, bits 8`"):
        assert part in row


def test_no_difference() -> None:
    assert empty().to_markdown() == "## `net`\n\n**No difference: all 70 nodes match.**\n"


def test_a_remark_on_numbers() -> None:
    text = empty(numbers=NumbersChange(note="- base has no *numbers*")).to_markdown()
    assert "### Numbers\n\nRemark: - base has no \\*numbers\\*" in text


def test_gates_that_hold() -> None:
    text = empty(gates=(Gate("macs", True, "at most 2", "1", "not to be told"),)).to_markdown()
    assert "✅ **The gate holds.** No difference" in text
    assert "not to be told" not in text


# -- the drawing -------------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """The chart's lines; each must have one of its few forms, so that no label can break out."""
    found = text.splitlines()
    assert found[0] == "flowchart TD"
    label = r"(?:[A-Za-z0-9 .,+]|#\d+;)"
    for line in found[1:]:
        assert re.fullmatch(rf'  n\d+\["{label}*(?:<br>{label}*)*"\]:::\w+|  n\d+ (-->|==>|-\.->) n\d+|  classDef \w+ [\w:#,. -]+', line), (
            line
        )
    return found


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_drawing_is_small(made: object) -> None:
    text = diff_mermaid.render(made())  # type: ignore[operator]
    if text:
        assert sum("[" in line for line in lines(text)) <= diff_mermaid.NODES
        assert len(text) < 8000


@given(st.text(min_size=1))
def test_labels_are_inert(text: str) -> None:
    assert re.fullmatch(r"(?:[A-Za-z0-9 .,+]|#\d+;)*", mermaid(text))
    assert not re.match(r"[\d.+ -]", mermaid(text))  # Mermaid reads "1. x" and "- x" as lists


def test_what_is_drawn() -> None:
    base = (side("x", "input"), side("a", "conv", "x"), side("b", "relu", "a"), side("c", "conv", "b"), side("far", "relu", "c"))
    head = (side("x", "input"), side("a", "conv", "x"), side("c", "conv", "a"), side("far", "relu", "c"))
    matches = tuple(Match(name, name, 1.0, "") for name in ("x", "a", "c", "far"))
    made = empty(removed=(place("b", "relu"),), sides=Sides(base, head, matches))
    assert [line.strip() for line in lines(diff_mermaid.render(made)) if "classDef" not in line][1:] == [
        'n0["conv<br>a"]:::same',
        'n1["conv<br>c"]:::same',
        'n2["relu<br>b<br>removed"]:::removed',
        "n0 ==> n1",
        "n0 -.-> n2",
        "n2 -.-> n1",
    ]


def test_a_group_is_one_box() -> None:
    base = (side("x", "input"), side("c", "conv", "x"), side("b", "batch_norm", "c"))
    head = (side("x", "input"), side("c", "conv", "x"))
    group = Group((place("c"), place("b", "batch_norm")), (place("c"),), "conv + batch_norm -> conv", 1.0)
    made = empty(groups=(group,), sides=Sides(base, head, (Match("x", "x", 1.0, ""), Match("c", "c", 1.0, ""))))
    text = diff_mermaid.render(made)
    assert '["conv + batch#95;norm #8594; conv<br>c<br>merged"]:::merged' in text
    assert text.count("-->") == 1


def test_changed_and_rewired_nodes_are_marked() -> None:
    nodes = (side("x", "input"), side("a", "conv", "x"), side("b", "add", "a", "x"))
    same = Sides(nodes, nodes, tuple(Match(n.id, n.id, 1.0, "") for n in nodes))
    change = NodeChange(place("a"), place("a"), 1.0, (Change("attribute", "stride", 1, 2),))
    wired = Rewired(place("b", "add"), place("b", "add"), 0, place("x"), place("a"))
    assert diff_mermaid.render(empty(changed=(change,), sides=same)).count(":::changed") == 1
    assert diff_mermaid.render(empty(rewired=(wired,), sides=same)).count(":::changed") == 1
    assert diff_mermaid.render(empty(changed=(change,), rewired=(wired,), sides=same)).count(":::changed") == 2


def test_nothing_to_draw() -> None:
    assert diff_mermaid.render(dataclasses.replace(resnet(), sides=None)) == ""
    assert diff_mermaid.render(empty(sides=resnet().sides)) == ""
