"""pytest plugin: the fixture ``graph_snapshot`` holds the graphs of a project's networks in its own tests.

::

    def test_network(graph_snapshot):
        graph_snapshot(make_network(), torch.randn(1, 3, 224, 224))

The first run writes ``__snapshots__/<test file>/<test>.fxs`` beside the test file; later runs compare with it and fail with a diff.
``pytest --fxcompress-update`` accepts what is new. In continuous integration nothing is written, and a missing file is a failure.
Only the standard library and pytest are imported when pytest starts; ``-p no:fxcompress`` turns the plugin off.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fxcompress.cli.surroundings import in_ci

if TYPE_CHECKING:
    from torch import nn

    from fxcompress.compare.schema import Snapshot
    from fxcompress.report.difference import Difference

FOLDER = "__snapshots__"
_SUFFIX = ".fxs"
_WROTE = "fxcompress_snapshot"
_LONGEST = 120  # characters of a file's name
_OWNERS = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fxcompress", "graphs of neural networks (fxcompress)")
    group.addoption("--fxcompress-update", action="store_true", help="accept the graphs of graph_snapshot as they are now")
    group.addoption("--fxcompress-allow-ci", action="store_true", help="with --fxcompress-update: write snapshots even where CI is set")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_OWNERS] = {}
    update, allowed = config.getoption("--fxcompress-update"), config.getoption("--fxcompress-allow-ci")
    if update and in_ci() and not allowed:
        raise pytest.UsageError(
            "--fxcompress-update in continuous integration (CI is set): run it at your desk, look at the difference and commit the files; "
            "a job that is meant to write snapshots adds --fxcompress-allow-ci"
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    wrote = {value for report in reports for key, value in getattr(report, "user_properties", ()) if key == _WROTE}
    if wrote:
        terminalreporter.section("graph snapshots")
        for path in sorted(wrote):
            terminalreporter.line(f"wrote {path}")
        terminalreporter.line("look at them and commit them")


class GraphSnapshot:
    """What the fixture ``graph_snapshot`` gives: called with a model, it compares its graph with the file of the test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._paths: set[Path] = set()

    def __call__(
        self,
        model: nn.Module,
        example_inputs: Any,
        name: str | None = None,
        *,
        weights: bool = True,
        bake: bool = False,
    ) -> None:
        """Fail where the graph of ``model`` is not that of the file; write the file where there is none (never in CI).

        Args:
            model: any module; a graph module, such as ``fxcompress.compress`` makes, is taken as it is.
            example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            name: tells several snapshots of one test apart.
            weights: compare the values of the weights and outputs, too; False where weights are drawn anew in every run.
            bake: accept parametrizations and weight norm, with their present value.

        Raises:
            FxCompressError: the model cannot be captured, or the file is damaged.
        """
        __tracebackhide__ = True
        path = self._path(name)
        from fxcompress.api.comparing import snapshot

        title = self._request.node.name + (f" {name}" if name else "")
        head = snapshot(model, example_inputs, name=title, numbers=weights, bake=bake)
        if self._request.config.getoption("--fxcompress-update"):
            self._update(path, head, weights)
        elif path.exists():
            self._compare(path, head, weights)
        elif in_ci():
            pytest.fail(f"there is no snapshot '{self._shown(path)}'; run the test at your desk and commit the file", pytrace=False)
        else:
            self._write(path, head)

    def _path(self, name: str | None) -> Path:
        node = self._request.node
        path = self._request.path.parent / FOLDER / self._request.path.stem / (file_name(node.nodeid, name) + _SUFFIX)
        owners = self._request.config.stash[_OWNERS]
        if path in self._paths:
            pytest.fail("a second snapshot in one test needs a name: graph_snapshot(model, inputs, name=...)", pytrace=False)
        if owners.setdefault(str(path).casefold(), node.nodeid) != node.nodeid:
            pytest.fail(
                f"this test and {owners[str(path).casefold()]} have the same snapshot '{self._shown(path)}'; rename one", pytrace=False
            )
        self._paths.add(path)
        return path

    def _compare(self, path: Path, head: Snapshot, weights: bool) -> None:
        __tracebackhide__ = True
        from fxcompress.compare import codec

        base = codec.read(path)
        found = self._difference(path, base, head, weights)
        if not _agree(found, base, head, weights):
            hint = f"accept it with: pytest --fxcompress-update '{self._request.node.nodeid}'"
            pytest.fail(f"the graph is not that of its snapshot\n\n{found.to_text()}\n{hint}", pytrace=False)

    def _update(self, path: Path, head: Snapshot, weights: bool) -> None:
        from fxcompress.compare import codec
        from fxcompress.errors import ArchiveError

        try:
            base = codec.read(path) if path.exists() else None
        except ArchiveError:  # damaged or of another version: what an update is for
            base = None
        if base is None or not _agree(self._difference(path, base, head, weights), base, head, weights):
            self._write(path, head)

    def _difference(self, path: Path, base: Snapshot, head: Snapshot, weights: bool) -> Difference:
        from dataclasses import replace

        from fxcompress.compare.approval import without_values
        from fxcompress.compare.diff import diff

        found = replace(diff(base, head), base=self._shown(path))
        return found if weights else without_values(found)

    def _write(self, path: Path, head: Snapshot) -> None:
        from fxcompress.cli.files import write_text
        from fxcompress.compare import codec

        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, codec.encode(head))
        self._request.node.user_properties.append((_WROTE, self._shown(path)))

    def _shown(self, path: Path) -> str:
        root = self._request.config.rootpath
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _agree(found: Difference, base: Snapshot, head: Snapshot, weights: bool) -> bool:
    from fxcompress.compare.approval import agree

    return agree(found, base, head) if weights else found.same_function and not found.cost


def file_name(nodeid: str, name: str | None) -> str:
    """The name of the file of a test, without its end; what file systems may not take is replaced, and then told apart by a digest.

    >>> file_name("tests/test_net.py::TestNet::test_small[64-relu]", "head")
    'TestNet.test_small-64-relu@head'
    """
    test = nodeid.partition("::")[2].replace("::", ".")
    exact = re.fullmatch(r"([\w.]+)(?:\[([\w.-]+)\])?", test, re.ASCII)
    text = "-".join(part for part in exact.groups() if part) if exact else re.sub(r"[^\w.-]+", "-", test, flags=re.ASCII)
    part = "" if name is None else re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    whole = f"{text}@{part}" if name is not None else text
    if exact and part == (name or "") and len(whole) <= _LONGEST and not whole.endswith("."):
        return whole
    return f"{whole[: _LONGEST - 9]}-{hashlib.sha256(f'{test}@{name}'.encode()).hexdigest()[:8]}"


@pytest.fixture
def graph_snapshot(request: pytest.FixtureRequest) -> GraphSnapshot:
    """Compares graphs with the files beside the test: ``graph_snapshot(model, example_inputs, name=None)``."""
    return GraphSnapshot(request)
