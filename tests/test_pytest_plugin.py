"""The pytest plugin in a fresh project, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.compare import codec
from fxcompress.pytest_plugin import file_name

pytest_plugins = ["pytester"]

TESTS = """
import torch
from torch import nn

def net(stride=1, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, STRIDE), nn.ReLU()).eval()

X = torch.zeros(1, 3, 8, 8)
"""
ONE = TESTS + "\ndef test_net(graph_snapshot):\n    graph_snapshot(net(), X)\n"
CI = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "TEAMCITY_VERSION", "JENKINS_URL", "BUILDKITE")


class Project:
    """A folder with one test file."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.file = Path("__snapshots__/test_it/test_net.fxs")

    def write(self, tests: str, stride: int = 1) -> None:
        self.pytester.makepyfile(test_it=tests.replace("STRIDE", str(stride)))

    def run(self, *options: str) -> pytest.RunResult:
        return self.pytester.runpytest_subprocess("-W", "error", *options)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in CI:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # an edited test file of the same second must be read again
    return Project(pytester)


def test_written_held_failed_and_accepted(project: Project) -> None:
    project.write(ONE)
    first = project.run()
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines([f"*wrote {project.file.as_posix()}", "*commit*"])
    assert len(codec.read(project.file).nodes) == 4
    before = project.file.read_text()
    second = project.run()
    second.assert_outcomes(passed=1)
    second.stdout.no_fnmatch_line("*wrote*")

    project.write(ONE, stride=2)
    third = project.run()
    third.assert_outcomes(failed=1)
    third.stdout.fnmatch_lines(
        ["*the graph is not that of its snapshot*", "*stride*", "*accept it with: pytest --fxcompress-update 'test_it.py::test_net'"]
    )
    third.stdout.no_fnmatch_line("*pytest_plugin.py*")
    assert project.file.read_text() == before

    accepted = project.run("--fxcompress-update")
    accepted.assert_outcomes(passed=1)
    accepted.stdout.fnmatch_lines(["*wrote*test_net.fxs"])
    assert project.file.read_text() != before
    project.run().assert_outcomes(passed=1)


def test_ci_writes_nothing_unless_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    project.write(ONE)
    missing = project.run()
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["*there is no snapshot '__snapshots__/test_it/test_net.fxs'*"])
    refused = project.run("--fxcompress-update")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--fxcompress-allow-ci*"])
    assert not project.file.exists()
    project.run("--fxcompress-update", "--fxcompress-allow-ci").assert_outcomes(passed=1)
    project.run().assert_outcomes(passed=1)
    monkeypatch.setenv("CI", "false")
    project.file.unlink()
    project.run().assert_outcomes(passed=1)
    assert project.file.exists()


def test_names_parameters_classes_and_workers(project: Project) -> None:
    """Every test has files of its own, so that processes which run tests side by side do not meet."""
    project.write(
        TESTS
        + """
import pytest

class TestNet:
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("name", ["a/b", "a:b", ".."])
    def test_some(self, graph_snapshot, stride, name):
        graph_snapshot(net(), X)
        graph_snapshot(net(), X, name)

def test_twice(graph_snapshot):
    graph_snapshot(net(), X)
    graph_snapshot(net(), X)
"""
    )
    for worker in ("gw0", "gw1"):
        project.pytester._monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        result = project.run()
        result.assert_outcomes(passed=6, failed=1)
        result.stdout.fnmatch_lines(["*a second snapshot in one test needs a name*"])
    files = sorted(path.name for path in Path("__snapshots__/test_it").iterdir())
    assert len(files) == 13
    assert all(name.endswith(".fxs") for name in files)
    assert [path.name for path in Path("__snapshots__").iterdir()] == ["test_it"]


def test_weights_drawn_anew(project: Project) -> None:
    text = TESTS.replace("torch.manual_seed(seed)", "torch.seed()")
    project.write(text + "\ndef test_net(graph_snapshot):\n    graph_snapshot(net(), X, weights=False)\n")
    project.run().assert_outcomes(passed=1)
    before = project.file.read_text()
    project.run().assert_outcomes(passed=1)
    project.run("--fxcompress-update").assert_outcomes(passed=1)
    assert project.file.read_text() == before
    project.write(text + "\ndef test_net(graph_snapshot):\n    graph_snapshot(net(), X)\n")
    project.run().assert_outcomes(failed=1)
    project.write(text + "\ndef test_net(graph_snapshot):\n    graph_snapshot(net(), X, weights=False)\n", stride=2)
    project.run().assert_outcomes(failed=1)


def test_a_weight_is_seen(project: Project) -> None:
    project.write(ONE)
    project.run().assert_outcomes(passed=1)
    project.write(ONE.replace("graph_snapshot(net(), X)", "n = net(); n[0].weight.data[0, 0, 0, 0] *= 1.001; graph_snapshot(n, X)"))
    project.run().assert_outcomes(failed=1)


def test_a_damaged_file(project: Project) -> None:
    project.write(ONE)
    project.run().assert_outcomes(passed=1)
    project.file.write_text(project.file.read_text()[:100])
    broken = project.run()
    broken.assert_outcomes(failed=1)
    broken.stdout.fnmatch_lines(["*ArchiveError*"])
    project.run("--fxcompress-update").assert_outcomes(passed=1)
    project.run().assert_outcomes(passed=1)


def test_turned_off(project: Project) -> None:
    project.write(ONE)
    result = project.run("-p", "no:fxcompress")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'graph_snapshot' not found*"])


def test_pytest_starts_without_torch(project: Project) -> None:
    project.pytester.makepyfile(test_it="def test_nothing(): pass")
    project.pytester.makeconftest(
        """
import sys
def pytest_sessionfinish(session):
    assert session.config.pluginmanager.hasplugin("fxcompress")
    for name in ("torch", "numpy", "fxcompress.compare", "fxcompress.api"):
        assert name not in sys.modules, name
"""
    )
    project.run().assert_outcomes(passed=1)
    project.run("--collect-only").stdout.fnmatch_lines(["*1 test collected*"])


def test_the_plugin_is_quick_to_import() -> None:
    code = "import sys, pytest; before = set(sys.modules); import fxcompress.pytest_plugin; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True)
    assert int(done.stdout) < 60


# -- names of files


@pytest.mark.parametrize(
    ("nodeid", "name", "expected"),
    [
        ("tests/test_net.py::test_net", None, "test_net"),
        ("tests/test_net.py::TestNet::test_net[64-relu]", None, "TestNet.test_net-64-relu"),
        ("tests/test_net.py::TestNet::test_net[64-relu]", "head", "TestNet.test_net-64-relu@head"),
    ],
)
def test_ordinary_names_stay(nodeid: str, name: str | None, expected: str) -> None:
    assert file_name(nodeid, name) == expected


TEXT = st.text(st.sampled_from("ab-_.@[]/\\: ä\n"), max_size=6)


@given(st.tuples(TEXT, st.none() | TEXT), st.tuples(TEXT, st.none() | TEXT))
def test_two_tests_have_two_files(one: tuple[str, str | None], two: tuple[str, str | None]) -> None:
    names = [file_name(f"t.py::test_x[{parameter}]", name) for parameter, name in (one, two)]
    assert (names[0] == names[1]) is (one == two)
    for name in names:
        assert len(name) <= 120
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_.@-")
        assert not name.startswith(".")
        assert not name.endswith(".")


def test_long_names() -> None:
    names = {file_name(f"t.py::test_x[{'a' * 300}{end}]", name) for end in "bc" for name in (None, "d" * 300)}
    assert len(names) == 4
    assert max(map(len, names)) <= 120
