"""Plans as text and files: JSON, damage, ranges, example inputs."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruning import dependencies, edited, group_of, halved, image, normed, planned, residual, tokens, written

from fxcompress.errors import ArchiveError, PlanError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning import plan_codec, ranges
from fxcompress.pruning.input_spec import InputSpec
from fxcompress.pruning.plan import PruningPlan, make_plan

# -- ranges ---------------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60)).map(sorted))
def test_ranges_round_trip(indices: list[int]) -> None:
    text = ranges.encode(np.array(indices, dtype=np.int64))
    assert ranges.decode(text).tolist() == indices
    assert ranges.count(text) == len(indices)
    assert np.flatnonzero(ranges.mask(text, 61)).tolist() == indices


def test_ranges_are_short() -> None:
    assert ranges.encode(np.arange(100)) == "0-99"
    assert ranges.encode(np.arange(0, 100, 3)) == "0-99:3"
    assert ranges.encode(np.array([1, 2, 5, 7, 9, 20])) == "1-2,5-9:2,20"
    assert ranges.encode(np.array([], dtype=np.int64)) == ""


@pytest.mark.parametrize("text", ["3-1", "1,1", "2,1", "a", "1-", "-1", "0-5:2", "1-3:0", "1,,2", "99999999999", "0 - 3", "٣"])
def test_ranges_refuse_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|ascend"):
        ranges.parse(text)


def test_ranges_of_a_stranger_are_counted_without_memory() -> None:
    assert ranges.count("0-9999999999") == 10**10


# -- inputs ---------------------------------------------------------------------------------------------------------------


def test_inputs_are_made_again_in_their_form() -> None:
    given_inputs = Inputs(
        (torch.randn(2, 3), [torch.arange(20) + 5, 1.5, None], {"a": (torch.tensor([True, False]), "text")}),
        {"mask": torch.ones(4, 5, dtype=torch.long), "half": torch.rand(3).half()},
    )
    made = InputSpec.of(given_inputs).make()
    assert made.args[0].shape == (2, 3)
    assert made.args[0].dtype == torch.float32
    assert made.args[1][0].tolist() == list(range(5, 25))
    assert made.args[1][1:] == [1.5, None]
    assert made.args[2]["a"][0].tolist() == [True, False]
    assert made.args[2]["a"][1] == "text"
    assert made.kwargs["mask"].eq(1).all()
    assert made.kwargs["half"].dtype == torch.float16
    again = InputSpec.of(given_inputs).make()
    assert torch.equal(again.args[0], made.args[0])


def test_inputs_that_cannot_be_made_again_are_asked_for() -> None:
    spec = InputSpec.of(Inputs((image(), object())))
    with pytest.raises(PlanError, match=r"there is a builtins.object in them\n.*example_inputs"):
        spec.make()


def test_inputs_of_a_stranger_are_not_made_without_limit() -> None:
    huge = dataclasses.replace(InputSpec.of(Inputs((image(),))).items[0].items[0], shape=(10**6, 10**6))
    spec = InputSpec("tuple", items=(InputSpec("tuple", items=(huge,)), InputSpec("dict")))
    with pytest.raises(PlanError, match="cannot be made"):
        spec.make()


# -- JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "written", "normed"])
def test_json_round_trips(name: str) -> None:
    model, inputs = {"residual": (residual(), None), "written": (written(), image(2, 3, 6, 6)), "normed": (normed(), tokens())}[name]
    plan = planned(model, inputs)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert str(again) == str(plan)


def test_json_has_infinities() -> None:
    deps = dependencies(residual())
    scores = np.linspace(0, 1, deps.classes)
    scores[0] = np.inf
    plan = make_plan(deps, halved(deps), scores)
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_a_file_round_trips(tmp_path: Path) -> None:
    plan = planned(residual())
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(ArchiveError, match="cannot be written"):
        plan.save(tmp_path / "no" / "plan.json")
    with pytest.raises(ArchiveError, match="cannot be read"):
        PruningPlan.load(tmp_path / "other.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchiveError, match="is no text"):
        PruningPlan.load(tmp_path / "bytes.json")


def test_the_same_bytes_in_every_process() -> None:
    program = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1])\n"
        "import pruning; sys.stdout.write(pruning.planned(pruning.residual()).to_json())\n"
        "sys.stdout.write(pruning.planned(pruning.normed(), pruning.tokens()).to_json())"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert texts == {planned(residual()).to_json() + planned(normed(), tokens()).to_json()}


DAMAGE = {
    "schema": (lambda d: d.update(schema_version=99), "schema version 99; this fxcompress reads up to 1"),
    "no schema": (lambda d: d.pop("schema_version"), "no schema_version"),
    "schema is no number": (lambda d: d.update(schema_version=True), "no schema_version"),
    "extra entry": (lambda d: d.update(code="import os"), "it has the entries"),
    "fingerprint": (lambda d: d.update(fingerprint="0"), "not those of its fingerprint"),
    "another structure": (lambda d: d["plan"]["parts"][0]["nodes"].pop(), "not those of its fingerprint"),
    "wrong type": (lambda d: d["plan"].update(parts="all"), "plan.parts is"),
    "no parts": (lambda d: d["plan"].update(parts=[]), "no parts"),
    "unknown field": (lambda d: group_of(d).update(hook="x"), r"plan.parts\[0\].groups\[0\] is no PlanGroup"),
    "missing field": (lambda d: group_of(d).pop("kept"), r"groups\[0\] lacks parts of a PlanGroup"),
    "kept is no range": (lambda d: group_of(d).update(kept="all"), "group 'stem.0': 'all' is no range"),
    "kept outside": (lambda d: group_of(d).update(kept="0-99"), "group 'stem.0': index 99 of 8"),
    "another count": (lambda d: group_of(d).update(kept="0-2"), "group 'stem.0': 3 of 8 channels are kept, but 4 of 8"),
    "importance": (lambda d: group_of(d).update(importance=[1.0]), "group 'stem.0': 1 importances for 8 channels"),
    "no slots": (lambda d: group_of(d).update(slots=[]), "group 'stem.0': it has no slots"),
    "negative axis": (lambda d: group_of(d)["slots"][0].update(axis=-1), "group 'stem.0': .* has no axis -1"),
    "twice": (lambda d: group_of(d, 1).update(name="stem.0"), "two groups are called 'stem.0'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    change, message = DAMAGE[name]
    with pytest.raises(ArchiveError, match=message):
        PruningPlan.from_json(edited(planned(residual()), change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "3", '{"schema_version": 1}', "[" * 100_000, '{"schema_version": NaN}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ArchiveError):
        PruningPlan.from_json(text)


def test_every_cut_of_a_file_is_refused() -> None:
    text = planned(written(), image(2, 3, 6, 6)).to_json()
    for end in range(0, len(text) - 2, 97):
        with pytest.raises(ArchiveError):
            PruningPlan.from_json(text[:end])


def test_long_texts_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = planned(residual())
    plan.save(tmp_path / "plan.json")
    monkeypatch.setattr(plan_codec, "MAX_BYTES", 100)
    with pytest.raises(ArchiveError, match="at most 100 are read"):
        PruningPlan.from_json(plan.to_json())
    with pytest.raises(ArchiveError, match="at most 100 are read"):
        PruningPlan.load(tmp_path / "plan.json")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _leaves(item, (*path, key))


WRONG = (
    None,
    -1,
    0,
    3,
    10**30,
    1.5,
    float("inf"),
    True,
    "",
    "x",
    "0-3",
    "0-99999",
    "tensor",
    "bfloat16",
    "nan",
    [],
    [1],
    {},
    {"kind": "tuple"},
)


def _replaced(data: Any, path: tuple[Any, ...], new: Any) -> Any:
    data = copy.deepcopy(data)
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return data


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_a_file_does_harm(seed: int) -> None:
    """A file with one wrong entry is refused, when it is read or when it is used, or does what the original does."""
    model, inputs = normed(), tokens()
    deps = dependencies(model, inputs)
    plan = planned(model, inputs)
    data, generator = json.loads(plan.to_json()), random.Random(seed)
    paths = [path for path in _leaves(data) if path]
    for _ in range(100):
        text = json.dumps(_replaced(data, generator.choice(paths), generator.choice(WRONG)))
        try:
            found = PruningPlan.from_json(text)
            str(found), found.diff(plan), found.to_json()
            keep = found.keep(deps)
            found.apply_to(copy.deepcopy(model))
            found.inputs.make()
        except (ArchiveError, PlanError):
            continue
        assert (keep == plan.keep(deps)).all()
