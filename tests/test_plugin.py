"""A pass from another distribution: installed by pip, found by its entry point, used by name, checked like any other."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"

MODEL = """
import torch, fxcompress
from fxcompress.pipeline import registry

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.relu(torch.relu(self.conv(x)))

x = torch.randn(2, 3, 8, 8)
model = Model().eval()
graph = torch.fx.symbolic_trace(model)

def run(text):
    return fxcompress.Pipeline.parse(text).execute(graph, fxcompress.Inputs.of(x))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the plugin installed in it."""
    source, target = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source)  # a build leaves files beside the sources
    assert importlib.util.find_spec("setuptools") is not None, "building the plugin without a network needs setuptools"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONWARNINGS": "error::UserWarning:fxcompress"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def check(site: Path, code: str) -> str:
    done = python(site, "-c", MODEL + code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_class_takes_less_than_ten_lines() -> None:
    text = (PLUGIN / "example_plugin.py").read_text()
    body = re.search(r"@dataclass.*?\n(class Once.*?)\n\n\n", text, re.S)
    assert body is not None
    assert len([line for line in body.group(1).splitlines() if line.strip()]) < 10


def test_it_is_listed_and_works_by_name(site: Path) -> None:
    said = check(
        site,
        """
assert {"once", "spoil", "fold-norm"} <= set(registry.names())
result = run("functionalize,once")
assert [s.changed for s in result.steps] == [False, True]
assert result.proof.error.equal and result.proof.error64.equal, result.proof
assert str(result.module.graph).count("torch.relu") == 1, result.module.graph
result = run("once{function=tanh}")
assert [s.changed for s in result.steps] == [False] and result.steps[0].text == "once{function=tanh}"
print(sum(n.target is torch.relu for n in result.module.graph.nodes))
""",
    )
    assert said.split() == ["2"]


def test_it_is_held_to_its_promise_and_the_failure_can_be_run_again(site: Path, tmp_path: Path) -> None:
    said = check(
        site,
        f"""
import tempfile
tempfile.tempdir = {str(tmp_path)!r}
try:
    run("once,spoil{{error=0.01}}")
except fxcompress.errors.EquivalenceError as error:
    print("\\n".join([str(error), *error.__notes__]))
""",
    )
    assert "pass 'spoil{error=0.01}' promises equal numbers" in said
    assert "after 'once'" in said
    script = re.search(r"to reproduce: python (.*\.py)", said)
    assert script is not None, said
    again = python(site, script.group(1))
    assert again.returncode == 1
    assert "EquivalenceError: pass 'spoil{error=0.01}' promises equal numbers" in again.stderr


def test_a_small_error_is_reproduced_too(site: Path, tmp_path: Path) -> None:
    said = check(
        site,
        f"""
import tempfile
tempfile.tempdir = {str(tmp_path)!r}
try:
    run("spoil")
except fxcompress.errors.EquivalenceError as error:
    print("\\n".join([str(error), *error.__notes__]))
""",
    )
    script = re.search(r"to reproduce: python (.*\.py)", said)
    assert script is not None, said
    assert "EquivalenceError: pass 'spoil'" in python(site, script.group(1)).stderr


def test_a_wrong_option_is_answered(site: Path) -> None:
    said = check(
        site,
        """
for text in ("once{functoin=relu}", "onze", "spoil{error=much}"):
    try:
        run(text)
    except fxcompress.errors.PipelineError as error:
        print(error)
""",
    )
    assert "pass 'once' has no option 'functoin'" in said
    assert "did you mean once" in said
    assert "is not of type float" in said


def test_a_plugin_that_cannot_be_imported_is_named(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path, dirs_exist_ok=True)
    (tmp_path / "example_plugin.py").write_text("import nothing_of_that_name\n")
    said = check(
        tmp_path,
        """
assert run("functionalize").steps  # the others still work
try:
    run("once")
except fxcompress.errors.PipelineError as error:
    print(error)
""",
    )
    assert "pass 'once' cannot be loaded from example_plugin:Once: No module named 'nothing_of_that_name'" in said


def test_the_command_line_lists_it(site: Path) -> None:
    done = python(site, "-m", "fxcompress", "passes")
    assert done.returncode == 0, done.stderr
    assert "once" in done.stdout


def test_a_criterion_is_known_by_name(site: Path) -> None:
    said = check(
        site,
        """
from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.pruning.criteria import Scoring, names, scored

assert {"peak", "l2"} <= set(names())
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
graph, inputs = torch.fx.symbolic_trace(net), fxcompress.Inputs.of(torch.randn(2, 3))
found = scored("peak", Scoring(Analyses(graph, inputs).get(ChannelDependencyGraph), graph, inputs))
print(torch.allclose(torch.from_numpy(found).float(), net[0].weight.abs().amax(1)))
""",
    )
    assert said.split() == ["True"]
