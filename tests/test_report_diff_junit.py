"""A difference as JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_differences import HOSTILE, empty, hostile, huge, resnet, small

from fxcompress.report import diff_junit
from fxcompress.report.difference import Gate

_ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "system-out": set(),
}
_CHILDREN = {"testsuites": {"testsuite"}, "testsuite": {"testcase", "system-out"}, "testcase": {"failure"}}


def check(document: str) -> ElementTree.Element:
    """Elements and attributes as the schema of Jenkins' xUnit plugin has them, numbers that count what is there."""
    root = ElementTree.fromstring(document.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) == _ATTRIBUTES[element.tag]
        assert {child.tag for child in element} <= _CHILDREN.get(element.tag, set())
    for part in (root, *root.iter("testsuite")):
        assert int(part.attrib["tests"]) == len(list(part.iter("testcase")))
        assert int(part.attrib["failures"]) == len(list(part.iter("failure")))
        assert int(part.attrib["errors"]) == 0
    return root


def test_gates_are_test_cases() -> None:
    root = check(small().to_junit())
    cases = {case.attrib["name"]: case for case in root.iter("testcase")}
    assert set(cases) == {"macs", "weight_bytes"}
    assert cases["macs"].find("failure") is None
    failure = cases["weight_bytes"].find("failure")
    assert failure is not None
    assert failure.text == failure.attrib["message"] == "weight_bytes: measured 6.1 MB, limit at most 5 MB (the phone has no more room)"
    assert cases["macs"].attrib["classname"] == "fxcompress.net@feature"


def test_changes_fail_nothing_without_gates() -> None:
    root = check(resnet().to_junit())
    assert root.attrib["tests"] == "1"
    assert root.attrib["failures"] == "0"
    output = root.find("testsuite/system-out")
    assert output is not None
    assert output.text == resnet().to_text()


@pytest.mark.parametrize("made", [empty(), hostile(), huge(50), hostile("\x00"), hostile("\ud800"), hostile("\ufffe\x0b")])
def test_it_is_well_formed(made: object) -> None:
    check(made.to_junit())  # type: ignore[attr-defined]


def test_hostile_text_stays_text() -> None:
    root = check(hostile().to_junit())
    assert HOSTILE[:12] in next(root.iter("failure")).attrib["message"]


@given(st.text())
def test_any_text_is_valid(text: str) -> None:
    check(empty(gates=(Gate(text, False, text, text, text),)).to_junit())


def test_several_models_in_one_file() -> None:
    root = check(diff_junit.render([small(), empty(), resnet()]))
    assert [suite.attrib["name"] for suite in root] == ["net@main -> net@feature", "net", "resnet18 -> resnet18 int8"]
    assert root.attrib["tests"] == "4"
    assert root.attrib["failures"] == "1"
