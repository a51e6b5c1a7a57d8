"""A difference as JUnit XML, the form in which Jenkins, GitLab and others read test results.

Each gate is a test case. Changes fail nothing by themselves: without gates the one test case passes and lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from fxcompress.report import diff_rows, diff_text, units
from fxcompress.report.diff_values import plain

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Gate


def render(differences: Sequence[Difference]) -> str:
    """One file for all models that were compared: a test suite for each."""
    suites = Element("testsuites", name="fxcompress")
    for difference in differences:
        suites.append(_suite(difference))
    for name in ("tests", "failures", "errors"):
        suites.set(name, str(sum(int(suite.get(name, "0")) for suite in suites)))
    indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suites, encoding="unicode") + "\n"


def _suite(difference: Difference) -> Element:
    name = plain(diff_rows.title(difference))
    counts = {"tests": len(difference.gates) or 1, "failures": len(diff_rows.violated(difference)), "errors": 0, "skipped": 0}
    suite = Element("testsuite", {"name": name, **{key: str(value) for key, value in counts.items()}, "time": "0"})
    for gate in difference.gates:
        _case(suite, f"fxcompress.{plain((difference.head,))}", gate)
    if not difference.gates:
        SubElement(suite, "testcase", classname="fxcompress", name="difference", time="0")
    SubElement(suite, "system-out").text = diff_text.render(difference)  # printable, so nothing that XML cannot hold
    return suite


def _case(suite: Element, classname: str, gate: Gate) -> None:
    case = SubElement(suite, "testcase", classname=classname, name=units.printable(gate.name), time="0")
    if not gate.holds:
        message = plain(diff_rows.gate_sentence(gate))
        SubElement(case, "failure", message=message, type="gate").text = message
