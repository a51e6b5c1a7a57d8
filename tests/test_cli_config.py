"""``[tool.fxcompress]``: what it means, and that nothing misspelt goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxcompress.cli.config import find_config, read_config
from fxcompress.errors import InputError

FULL = """
[tool.other]
x = 1
[tool.fxcompress]
baselines = "graphs"
[tool.fxcompress.defaults]
inputs = ["1x3x8x8"]
dtype = "float64"
[tool.fxcompress.defaults.gates]
topology = "approved"
macs = "1 GMACs"
[tool.fxcompress.models]
small = { spec = "nets:small" }
[tool.fxcompress.models.large]
spec = "nets:large"
inputs = ["1x16:int64", "1x3x8x8"]
baseline = "elsewhere/large.fxs"
dtype = "float32"
weights = "w.safetensors"
pretrained = true
bake = true
pipeline = "default"
numbers = true
data = "nets:loader"
gates = { macs = ["2 GMACs", "+1%"], sqnr = { limit = "30 dB", message = "ask" } }
"""
MODEL = '[tool.fxcompress.models.net]\nspec = "nets:net"\ninputs = ["1x3"]\n'


def config(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything(tmp_path: Path) -> None:
    found = read_config(config(tmp_path, FULL))
    small, large = found.models
    assert (small.name, small.spec, small.inputs, small.baseline, small.dtype) == (
        "small",
        "nets:small",
        ("1x3x8x8",),
        "graphs/small.fxs",
        "float64",
    )
    assert [(b.name, str(b.limit)) for b in small.gates] == [("topology", "approved"), ("macs", "at most 1 GMACs")]
    assert large.inputs == ("1x16:int64", "1x3x8x8")
    assert (large.baseline, large.dtype, large.weights, large.pipeline, large.data) == (
        "elsewhere/large.fxs",
        "float32",
        "w.safetensors",
        "default",
        "nets:loader",
    )
    assert (large.pretrained, large.bake, large.numbers) == (True, True, True)
    assert [(b.name, str(b.limit), b.message) for b in large.gates] == [
        ("topology", "approved", ""),
        ("macs", "at most 2 GMACs", ""),
        ("macs", "at most +1%", ""),
        ("sqnr", "at least 30 dB", "ask"),
    ]
    assert found.path("a/b") == tmp_path / "a/b"


def test_the_nearest_file_above(tmp_path: Path) -> None:
    path = config(tmp_path, MODEL)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_config(deep) == path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = ", ["not valid TOML"]),
        ("a = " + "[" * 5000, ["not valid TOML"]),
        ("", ["has no [tool.fxcompress]", "spec ="]),
        ("tool = 3", ["has no [tool.fxcompress]"]),
        ("tool.fxcompress = 3", ["has no [tool.fxcompress]"]),
        ("[tool.fxcompress]", ["names no model", "spec ="]),
        ("[tool.fxcompress]\nmodel = 1", ["no 'model' in [tool.fxcompress]", "did you mean 'models'"]),
        ("[tool.fxcompress]\nmodels = 1", ["names no model"]),
        ("[tool.fxcompress.models]\nnet = 1", ["[tool.fxcompress.models.net] is not a table"]),
        ('[tool.fxcompress.models."../net"]\nspec = "a:b"', ["no name for a model"]),
        ('[tool.fxcompress.models.".."]\nspec = "a:b"', ["no name for a model"]),
        ('[tool.fxcompress.models."a\\nb\\u001b"]\nspec = "a:b"', ["no name for a model"]),
        ('[tool.fxcompress.models.net]\nspec = "a:b"', ["has no 'inputs'"]),
        ('[tool.fxcompress.models.net]\ninputs = ["1x3"]', ["has no 'spec'"]),
        (MODEL + "input = 3", ["no 'input' in [tool.fxcompress.models.net]", "did you mean 'inputs'"]),
        (MODEL + "gate = {}", ["did you mean 'gates'"]),
        (MODEL + "name = 'x'", ["no 'name'"]),
        (MODEL + "numbers = 1", ["neither true nor false"]),
        (MODEL + "dtype = 3", ["is no text"]),
        (MODEL + "baseline = ''", ["is no text"]),
        (MODEL.replace('["1x3"]', '"1x3"'), ["no list of sizes"]),
        (MODEL.replace('["1x3"]', "[]"), ["no list of sizes"]),
        (MODEL.replace('["1x3"]', "[1]"), ["no list of sizes"]),
        (MODEL + "gates = 'topology'", ["gates is not a table"]),
        (
            MODEL + "gates = { toplogy = 'approved' }",
            ["no gate 'toplogy' in [tool.fxcompress.models.net.gates]", "did you mean 'topology'"],
        ),
        (MODEL + "gates = { macs = '+1' , params = '0.5%' }", ["params", "has a sign"]),
        (MODEL + "numbers = false\ngates = { sqnr = '3 dB' }", ["sqnr", "numbers = false"]),
        (MODEL + "gates = { latency = '+5%' }", ["no weights", "saved-model.fxc"]),
        (MODEL + "[tool.fxcompress.defaults]\nspec = 'a:b'", ["no 'spec' in [tool.fxcompress.defaults]"]),
        (MODEL + "[tool.fxcompress.defaults.gates]\nmac = 3", ["no gate 'mac' in [tool.fxcompress.defaults.gates]", "macs"]),
        (MODEL + "[tool.fxcompress]\nx = 1", ["no 'x' in [tool.fxcompress]"]),
    ],
)
def test_what_has_no_meaning(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_config(config(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\x1b" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"x = '\xff'")
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path / "latin.toml")
    with pytest.raises(InputError, match=r"there is no pyproject\.toml"):
        find_config(Path("/nowhere/at/all"))


def test_a_latency_relative_to_a_model_is_allowed(tmp_path: Path) -> None:
    text = MODEL + "baseline = 'old.fxc'\ngates = { latency = '+5%' }"
    assert read_config(config(tmp_path, text)).models[0].baseline == "old.fxc"
    assert read_config(config(tmp_path, MODEL + "gates = { latency = '5 ms' }")).models[0].gates
