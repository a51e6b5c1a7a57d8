"""A difference as workflow commands, read back by the rules of the runner."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_differences import HOSTILE, empty, hostile, huge, place, small

from fxcompress.report.diff_github import inside
from fxcompress.report.difference import Difference, Gate, Place
from fxcompress.report.inert import workflow_message, workflow_property

Command = tuple[str, dict[str, str], str]


def commands(text: str) -> list[Command]:
    """As actions/runner reads a log (ActionCommand.cs): one command per line, properties by comma, then the escapes."""
    found = []
    for line in re.split(r"\r\n|\r|\n|\x85|\u2028|\u2029|\x0b|\x0c", text):
        if not line:
            continue
        matched = re.fullmatch(r"::(\w+) ?([^:]*(?:%3A[^:]*)*)::(.*)", line)
        assert matched is not None, line
        properties = dict(item.split("=", 1) for item in matched[2].split(",") if item)
        found.append((matched[1], {key: unescape(value) for key, value in properties.items()}, unescape(matched[3])))
    return found


def unescape(text: str) -> str:
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "app" / "models").mkdir(parents=True)
    (tmp_path / "app" / "models" / "net.py").write_text("")
    return tmp_path


def test_at_the_line_of_the_user(root: Path) -> None:
    found = commands(small().to_github(root))
    assert all(level == "error" for level, _, _ in found)
    lines = {message: (properties.get("file"), properties.get("line")) for _, properties, message in found}
    assert lines["relu act.relu: removed"] == ("app/models/net.py", "30")
    assert lines["conv stem: stride (1, 1) -> (2, 2)"] == ("app/models/net.py", "22")
    assert lines["quality drops first at gelu act.gelu from 61.0 dB to 33.5 dB"] == ("app/models/net.py", "31")


def test_gates_come_first(root: Path) -> None:
    first = commands(small().to_github(root))[0]
    assert first[0] == "error"
    assert first[1] == {"title": "net@main -> net@feature: gate violated"}
    assert "the phone has no more room" in first[2]


def test_notices_where_all_gates_hold(root: Path) -> None:
    held = dataclasses.replace(small(), gates=(Gate("macs", True, "1", "1"),))
    assert {level for level, _, _ in commands(held.to_github(root))} == {"notice"}


def test_nothing_for_no_difference(root: Path) -> None:
    assert empty().to_github(root) == ""


def test_at_most_ten(root: Path) -> None:
    found = commands(huge(100).to_github(root))
    assert len(found) == 10
    told = re.fullmatch(r"and (\d+) more findings; the other forms of the report list them", found[-1][2])
    assert told is not None
    assert int(told[1]) == 50 + 100 + 1 + 4 * 100 + 100 - 9  # gates, contract, rewired (one theme), the rest


def test_ten_are_told_without_a_remark(root: Path) -> None:
    made = empty(added=tuple(place(f"n{i}", f"kind{i}") for i in range(10)))
    assert [message for _, _, message in commands(made.to_github(root))] == [f"kind{i} n{i}: added" for i in range(10)]


def test_several_nodes_of_one_theme(root: Path) -> None:
    made = empty(removed=tuple(dataclasses.replace(place(f"bn{i}", "batch_norm", i + 1), index=i) for i in range(8)))
    [(_, properties, message)] = commands(made.to_github(root))
    assert message == "8 batch_norm: removed (bn0, bn1, bn2, bn3, bn4 and 3 more)"
    assert properties["line"] == "1"


@pytest.mark.parametrize(
    "text", [HOSTILE, "::stop-commands::x", "a\n::error::b", "%0A::error::", "a,line=1::b", "\r", "", "\u2028::error::x"]
)
def test_hostile_names_are_no_commands(text: str, root: Path) -> None:
    made = hostile(text)
    wanted = len(commands(small().to_github(root)))
    found = commands(made.to_github(root))
    assert 0 < len(found) <= wanted
    assert all(set(properties) <= {"title", "file", "line"} for _, properties, _ in found)
    assert all("file" not in properties for _, properties, _ in found)


@given(st.text(alphabet="%0123AaDdC:,\r\n ") | st.text())
@example("%0A::error::%25%3A%2C%0D")
def test_escapes_are_undone_by_the_runner(text: str) -> None:
    assert "\n" not in workflow_message(text)
    assert "\r" not in workflow_message(text)
    assert not set("\r\n:,") & set(workflow_property(text))
    assert unescape(workflow_message(text)) == unescape(workflow_property(text)) == text


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("app/models/net.py", "app/models/net.py"),
        ("/somewhere/else/repo/app/models/net.py", "app/models/net.py"),
        (r"D:\a\repo\app\models\net.py", "app/models/net.py"),
        ("/usr/lib/python3/site-packages/app/models/net.py", ""),
        ("app/models/other.py", ""),
        ("torchvision/models/resnet.py", ""),
        ("../outside.py", ""),
        ("/app/../../outside.py", ""),
        ("app/models", ""),
        ("", ""),
        ("/", ""),
        ("a\0b", ""),
        ("x" * 5000, ""),
        ("/" + "x/" * 500, ""),
    ],
)
def test_only_files_of_the_repository(path: str, found: str, root: Path) -> None:
    (root.parent / "outside.py").write_text("")
    assert inside(path, root) == found


def test_absolute_paths(root: Path) -> None:
    (root.parent / "outside.py").write_text("")
    (root / "outside.py").write_text("")
    assert inside(str(root / "app/models/net.py"), root) == "app/models/net.py"
    assert inside(str(root.parent / "outside.py"), root) == ""  # another file of that name


@pytest.mark.parametrize(
    "source",
    [None, "", "net.py", "app/models/net.py:", "app/models/net.py:x", "app/models/net.py:1e3", ":3", "app/models/net.py:9999999999"],
)
def test_sources_that_are_none(source: str | None, root: Path) -> None:
    made = empty(added=(Place("n", "conv", "", source),))
    [(_, properties, _)] = commands(made.to_github(root))
    assert "file" not in properties


def test_the_root_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "app")
    made: Difference = empty(added=(place("n"),))
    assert commands(made.to_github())[0][1]["file"] == "app/models/net.py"
