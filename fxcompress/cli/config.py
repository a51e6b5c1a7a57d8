"""``[tool.fxcompress]`` of pyproject.toml: which models ``fxcompress check`` looks at, and what they may cost.

::

    [tool.fxcompress]
    baselines = "baselines"                  # the folder of the baselines; NAME.fxs in it, unless a model says otherwise

    [tool.fxcompress.models.resnet18]
    spec = "torchvision:resnet18"
    inputs = ["1x3x224x224"]

    [tool.fxcompress.models.resnet18.gates]
    topology = "approved"
    weight_bytes = "47 MB"
    macs = ["1.9 GMACs", "+0.5%"]
    sqnr = { limit = "35 dB", message = "ask the speech team before you lower this" }

``[tool.fxcompress.defaults]`` has keys of models, and gates, for those that do not have them themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fxcompress.compare.budgets import Budget, budgets
from fxcompress.compare.limits import nearest
from fxcompress.errors import InputError
from fxcompress.report.units import clip

FILE = "pyproject.toml"
SUFFIX = ".fxs"
"""Of the file of a snapshot."""

_TOP = "[tool.fxcompress]"
_EXAMPLE = """write for example
     [tool.fxcompress.models.mynet]
     spec = "package.module:factory"
     inputs = ["1x3x224x224"]
     gates = { topology = "approved", weight_bytes = "+0.5%" }"""
_LARGEST = 2**22  # bytes of a configuration


@dataclass(frozen=True)
class ModelConfig:
    """One model. ``baseline``: a file of a snapshot, or a SPEC of a model with weights; relative paths start at the configuration's folder.

    ``pipeline``: passes that the model goes through before it is looked at, "default" for those of ``compress``.
    ``data``: SPEC of inputs for the numbers, in place of seeded ones.
    """

    name: str
    spec: str
    inputs: tuple[str, ...]
    baseline: str = ""
    dtype: str = "float32"
    weights: str | None = None
    pretrained: bool = False
    bake: bool = False
    pipeline: str | None = None
    numbers: bool = True
    data: str | None = None
    gates: tuple[Budget, ...] = field(default=())


_KEYS = tuple(f.name for f in fields(ModelConfig) if f.name != "name")


@dataclass(frozen=True)
class Config:
    """All models, in the order of the file; ``folder``: where the file lies."""

    folder: Path
    models: tuple[ModelConfig, ...]

    def path(self, text: str) -> Path:
        """A path of the configuration."""
        return self.folder / text


def find_config(start: Path) -> Path:
    """The nearest pyproject.toml at or above ``start``.

    Raises:
        InputError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    raise InputError(f"there is no {FILE} in '{start}' or above it", hint=f"{_EXAMPLE}\n     in one, or name a file with --config")


def read_config(path: Path) -> Config:
    """The models and gates of a file.

    Raises:
        InputError: it cannot be read, or something in it has no meaning; the message names the place and the nearest name.
    """
    table = _table(path)
    _known(table, ("baselines", "defaults", "models"), _TOP)
    defaults = _defaults(table.get("defaults", {}))
    folder = _text(table.get("baselines", "baselines"), f"{_TOP} baselines")
    models = table.get("models", {})
    if not isinstance(models, dict) or not models:
        raise InputError(f"'{path}' names no model in [tool.fxcompress.models]", hint=_EXAMPLE)
    return Config(path.absolute().parent, tuple(_model(name, entry, folder, defaults) for name, entry in models.items()))


def _defaults(table: object) -> dict[str, Any]:
    where = "[tool.fxcompress.defaults]"
    if not isinstance(table, dict):
        raise InputError(f"{where} is not a table", hint=_EXAMPLE)
    _known(table, [name for name in _KEYS if name not in ("spec", "baseline")], where)
    for key, value in table.items():
        _READERS.get(key, _text)(value, f"{where} {key}")
    return table


def _table(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"'{path}' is too large for a configuration")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read '{path}': {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"'{path}' is not valid TOML: {error}") from None
    tools = document.get("tool", {})
    table = tools.get("fxcompress") if isinstance(tools, dict) else None
    if not isinstance(table, dict):
        raise InputError(f"'{path}' has no {_TOP}", hint=_EXAMPLE)
    return table


def _model(name: str, entry: object, folder: str, defaults: dict[str, Any]) -> ModelConfig:
    where = f"[tool.fxcompress.models.{clip(name, 60)}]"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise InputError(f"{where}: that is no name for a model", hint="use letters, digits, '_', '-' and '.'")
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not a table", hint=_EXAMPLE)
    _known(entry, _KEYS, where)
    own = entry.get("gates", {})
    entry = (
        defaults | entry | ({"gates": defaults.get("gates", {}) | own} if isinstance(own, dict) and ("gates" in defaults or own) else {})
    )
    for key in ("spec", "inputs"):
        if key not in entry:
            raise InputError(f"{where} has no '{key}'", hint=_EXAMPLE)
    values: dict[str, Any] = {"baseline": f"{folder}/{name}{SUFFIX}"}
    values |= {key: _READERS.get(key, _text)(value, f"{where} {key}") for key, value in entry.items()}
    config = ModelConfig(name=name, **values)
    _check(config, where)
    return config


def _check(config: ModelConfig, where: str) -> None:
    for budget in config.gates:
        if budget.name in ("sqnr", "top1") and not config.numbers:
            raise InputError(f"{where} has a gate {budget.name} but numbers = false", hint="take one of them away")
        relative = budget.name == "latency" and budget.needs_baseline
        if relative and config.baseline.endswith(SUFFIX):
            hint = 'give a limit in milliseconds, or a baseline with weights: baseline = "saved-model.fxc"'
            raise InputError(
                f"{where}: a latency relative to '{config.baseline}' cannot be measured, for a snapshot has no weights", hint=hint
            )


def _known(table: Mapping[str, Any], names: list[str] | tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in names:
            raise InputError(f"there is no '{clip(key, 60)}' in {where}", hint=nearest(key, names, "keys"))


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} = {clip(repr(value), 60)} is no text", hint='write it between quotes: "..."')
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where} = {clip(repr(value), 60)} is neither true nor false", hint="write true or false")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where} = {clip(repr(value), 60)} is no list of sizes", hint='write inputs = ["1x3x224x224"], one per argument')
    return tuple(value)


def _gates(value: object, where: str) -> tuple[Budget, ...]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a table", hint='write gates = { topology = "approved" } or a table of its own')
    return budgets(value, where.replace("] gates", ".gates]"))


_READERS = {"inputs": _texts, "pretrained": _flag, "bake": _flag, "numbers": _flag, "gates": _gates}
