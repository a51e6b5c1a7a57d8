"""The project's own graphs: the zoo after the passes of ``compress`` is as benchmarks/snapshots says.

After a change that was meant to change graphs: ``fxcompress check --update``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fxcompress.cli import main
from fxcompress.passes.fold_norm import FoldNorm
from fxcompress.pipeline import PassContext, PassResult

pytest.importorskip("torchvision")

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "pyproject.toml"
MODELS = sorted(tomllib.loads(CONFIG.read_text(encoding="utf-8"))["tool"]["fxcompress"]["models"])
QUICK = ("resnet18", "resnet18_int8", "mobilenet_v3_small", "squeezenet1_1", "densenet121")
SLOW = tuple(name for name in MODELS if name not in QUICK)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(variable, raising=False)


def holds(name: str) -> bool:
    return main(["check", "--config", str(CONFIG), "--only", name]) == 0


@pytest.mark.parametrize("name", QUICK)
def test_the_graph_is_the_approved_one(name: str) -> None:
    assert holds(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_graph_is_the_approved_one_in_the_whole_zoo(name: str) -> None:
    assert holds(name)


def test_a_pass_that_does_less_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(FoldNorm, "run", lambda self, module, ctx: PassResult(module, changed=False))
    assert not holds("resnet18")
    assert "topology" in capsys.readouterr().out


def test_a_pass_that_only_changes_a_setting_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FoldNorm.run

    def other_stride(self: FoldNorm, module, ctx: PassContext) -> PassResult:
        result = real(self, module, ctx)
        result.module.get_submodule("layer4.1.conv2").padding_mode = "circular"
        return result

    monkeypatch.setattr(FoldNorm, "run", other_stride)
    assert not holds("resnet18")


def test_every_snapshot_has_its_model_and_is_small() -> None:
    files = {path.stem: path.stat().st_size for path in (ROOT / "benchmarks" / "snapshots").iterdir()}
    assert sorted(files) == MODELS
    assert max(files.values()) < 200_000
    assert sum(files.values()) < 1_000_000
