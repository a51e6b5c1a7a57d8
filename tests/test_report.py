"""Reports as data, text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_samples import AFTER, BEFORE, HOSTILE, hostile, pair_of, report
from torch import nn

from fxcompress.capture import capture
from fxcompress.errors import ArchiveError, InputError
from fxcompress.pipeline import Pipeline
from fxcompress.report import Accuracy, Candidate, Measured, MissedLine, Report, graph_view, rows, units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (25_557_032, "25.6 M"),
        (4_089_184_256, "4.09 G"),
        (999_999, "1.00 M"),
        (10**21, "1000000 P"),
    ],
)
def test_counts(value: int, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1023, "0.999 KiB"), (102_228_128, "97.5 MiB"), (3 * 2**30, "3.00 GiB")])
def test_sizes(value: int, text: str) -> None:
    assert units.size(value) == text


@given(st.integers(0, 10**18))
def test_counts_are_short_and_near(value: int) -> None:
    number, _, unit = units.count(value).partition(" ")
    assert float(number) * 1000 ** ["", "k", "M", "G", "T", "P"].index(unit) == pytest.approx(value, rel=0.006)
    assert len(number) <= 4


@pytest.mark.parametrize(
    ("before", "after", "spreads", "text"),
    [
        (10.0, 5.0, (0.1, 0.1), "2.00x faster"),
        (5.0, 10.0, (0.1, 0.1), "2.00x slower"),
        (10.0, 9.0, (0.1, 1.0), "~ same"),
        (10.0, 9.0, (1.5, 0.1), "~ same"),
        (10.0, 9.95, (0.0, 0.0), "~ same"),
        (10.0, 9.0, (None, None), "1.11x faster"),
        (None, 9.0, (None, None), ""),
        (10.0, None, (0.1, None), ""),
    ],
)
def test_nothing_is_called_faster_within_the_spread(
    before: float | None, after: float | None, spreads: tuple[float, ...], text: str
) -> None:
    assert units.speedup(before, after, spreads) == text


def test_ratios_show_small_changes() -> None:
    assert units.ratio(100, 62) == "x0.62"
    assert units.ratio(25_557_032, 25_530_472) == "x0.999"
    assert units.ratio(7, 7) == "same"
    assert units.ratio(0, 7) == ""


@pytest.mark.parametrize("made", [report(), hostile(), report(graphs=(pair_of("resnet18"),)), Report("m", "", "fx", BEFORE, AFTER)])
def test_json_round_trip(made: Report) -> None:
    again = Report.from_json(made.to_json())
    if made.accuracy is not None and math.isnan(made.accuracy.relative):  # NaN is not equal to itself
        assert again.accuracy is not None
        assert math.isnan(again.accuracy.relative)
        again = dataclasses.replace(again, accuracy=made.accuracy)
    assert again == made
    assert json.loads(made.to_json())["schema_version"] == 1


def test_json_has_no_words_of_its_own_for_numbers() -> None:
    text = dataclasses.replace(report(), accuracy=Accuracy(0.0, 0.0, math.inf)).to_json()
    assert '"inf"' in text
    assert "Infinity" not in text
    found = Report.from_json(text).accuracy
    assert found is not None
    assert found.sqnr_db == math.inf


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 1', '"schema_version": 2', "reads up to 1"),
        ('"schema_version": 1', '"schema": 1', "schema_version"),
        ('"params": 25557032', '"params": "many"', r"report\.before\.params"),
        ('"params": 25557032', '"parms": 25557032', "Measured"),
        ('"macs": 4089184256,', "", "lacks parts"),
        ("{", "", "not JSON"),
    ],
)
def test_damaged_json_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        Report.from_json(report().to_json().replace(old, new, 1))


@pytest.mark.parametrize("width", [80, 96, 100])
@pytest.mark.parametrize("made", [report(notes=("a note " * 40,)), hostile()])
def test_text_fits_the_width(made: Report, width: int) -> None:
    lines = made.to_text(width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_text_says_what_matters() -> None:
    text = report().to_text()
    for part in (
        "1.43x faster",
        "25.6 M",
        "97.5 MiB",
        "131.2 dB",
        "fold-norm",
        "openvino",
        "kept",
        "pip install onnxruntime",
        "9 x",
        "n/resnet.py:0",
    ):
        assert part in text
    assert str(report()) == text


def test_missed_remarks_are_grouped_and_cut() -> None:
    many = (*tuple(MissedLine(f"n{i}", f"reason {i % 40} of '{i}'", f"/a/b/c/d.py:{i}") for i in range(400)), MissedLine("x", "rare", None))
    made = dataclasses.replace(report(), missed=many)
    groups = rows.missed_groups(made)
    assert [len(g.lines) for g in groups] == [10] * 40 + [1]
    block = made.to_text().split("not rewritten")[1].splitlines()
    assert len(block) <= 26
    assert "more reasons" in block[-1]
    assert groups[-1].reason == "rare"


def test_equal_reasons_have_equal_texts() -> None:
    assert rows.reason("fold-norm: 'conv1' is also read by relu, add") == rows.reason("fold-norm: 'c' is also read by x")


def test_markdown_tables_survive_hostile_names() -> None:
    text = hostile().to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table[:9]}) == 1
    assert "<script" not in text.replace("\\<", "")


def test_page_has_no_address_and_no_markup_of_the_model() -> None:
    text = hostile().to_html()
    assert text.count("<script") == 2
    assert "<img" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_notebook_form_is_small() -> None:
    text = report(graphs=(pair_of("resnet18"),))._repr_html_()
    assert len(text) < 4000
    assert "1.43x faster" in text
    assert "<script" not in hostile()._repr_html_()


@pytest.mark.parametrize(("suffix", "start"), [(".txt", "resnet50"), ("md", "# resnet50"), (".JSON", "{"), ("html", "<!DOCTYPE html>")])
def test_the_suffix_decides_the_form(suffix: str, start: str) -> None:
    assert report().render(suffix).startswith(start)


def test_unknown_suffix() -> None:
    with pytest.raises(InputError, match="txt, md, json, html"):
        report().render(".pdf")


def test_race_puts_the_kept_one_first_and_what_did_not_run_last() -> None:
    assert [row[0] for row in rows.race_rows(report())] == ["openvino", "cpu", "original", "onnxruntime"]


def test_nothing_measured() -> None:
    none = Measured(0, 0, 0, 0)
    made = Report("m", "m", "fx", none, none, race=(Candidate("cpu", None, False),))
    for suffix in ("txt", "md", "json", "html"):
        assert "faster" not in made.render(suffix).replace(".faster", "")


def test_views_of_fused_nodes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    part = capture(model, torch.randn(1, 3, 8, 8)).parts[0]
    run = Pipeline.parse("functionalize,fold-norm,fuse").execute(part.graph, part.inputs)
    source, conv, output = graph_view(run.module).nodes
    assert (source.kind, output.kind, conv.kind) == ("input", "output", "conv+relu")
    assert len(conv.from_) == 3
    assert conv.inputs == (source.id,)
    assert conv.shape == ""


def test_views_know_shapes_and_source_lines() -> None:
    nodes = {node.name: node for node in pair_of("resnet18").before.nodes}
    assert nodes["conv1"].shape == "1x64x112x112"
    assert "resnet.py" in (nodes["conv1"].source or "")
    assert "Conv2d(3, 64" in nodes["conv1"].detail


def test_a_module_that_cannot_describe_itself_is_drawn() -> None:
    class Shy(nn.ReLU):
        def extra_repr(self) -> str:
            raise ValueError("no")

    part = capture(nn.Sequential(nn.ReLU()), torch.randn(2)).parts[0]
    part.graph.set_submodule("0", Shy())
    assert any("raised ValueError" in node.detail for node in graph_view(part.graph).nodes)


def test_hostile_is_hostile() -> None:
    assert "</script>" in HOSTILE
