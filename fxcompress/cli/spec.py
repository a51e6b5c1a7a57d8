"""Models and inputs as they are written on the command line.

A SPEC is ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory`` (a function that is called without arguments, a
class, or a module object) or the path of a file that fxcompress has saved. An input is ``1x3x224x224``, a size with
``x``, optionally with a type of its own: ``1x16:int64``.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcompress.errors import ArchiveError, InputError
from fxcompress.result import load

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}

MAX_ELEMENTS = 2**31
_WITH_BACKBONE = ("deeplab", "fcn", "lraspp", "retinanet", "ssd", "fcos")
FORMS = "torchvision:NAME, timm:NAME, package.module:factory, or a file saved by fxcompress"


def load_model(spec: str, *, pretrained: bool = False, weights: Path | None = None) -> nn.Module:
    """The model that ``spec`` names, in eval mode; random weights come from seed 0.

    Args:
        pretrained: let torchvision or timm fetch its default trained weights.
        weights: a state_dict (``torch.save`` or safetensors) to load into it; never unpickles code.

    Raises:
        InputError: there is no such package, model or file; the nearest names are in the message.
        ArchiveError: a saved file is damaged.
    """
    torch.manual_seed(0)
    source, colon, name = spec.partition(":")
    if not colon or Path(spec).is_file():
        model = _saved(spec)
    elif source == "torchvision":
        model = _torchvision(name, pretrained)
    elif source == "timm":
        model = _timm(name, pretrained)
    else:
        model = _own(source, name)
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def _saved(spec: str) -> nn.Module:
    if not Path(spec).exists():
        raise InputError(f"there is no file '{spec}'", hint=f"a SPEC is {FORMS}")
    return load(spec)


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    models = _package("torchvision").models
    known = models.list_models()
    _check_name(name, known, "torchvision")
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if not pretrained and (name.startswith(_WITH_BACKBONE) or "rcnn" in name):
        options["weights_backbone"] = None  # would be fetched from the network otherwise
    if name in ("googlenet", "inception_v3") and not pretrained:
        options["init_weights"] = False  # the default of torchvision warns that it will change
    model: nn.Module = models.get_model(name, **options)
    return model


def _timm(name: str, pretrained: bool) -> nn.Module:
    timm = _package("timm")
    _check_name(name.partition(".")[0], timm.list_models(), "timm")
    model: nn.Module = timm.create_model(name, pretrained=pretrained)
    return model


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(f"the package '{name}' is not installed", hint=f"pip install {name}") from None


def _check_name(name: str, known: Sequence[str], package: str) -> None:
    if name not in known:
        raise InputError(f"{package} has no model '{name}'", hint=_nearest(name, known, f"{package}:"))


def _nearest(name: str, known: Iterable[str], prefix: str) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return f"did you mean {' or '.join(prefix + n for n in near)}?" if near else f"it has {', '.join(names[:8])}, ..."


def _own(module_name: str, path: str) -> nn.Module:
    return _made(find(module_name, path, "model", f"a SPEC is {FORMS}"), f"{module_name}:{path}")


def find(module_name: str, path: str, what: str, forms: str) -> Any:
    """What ``package.module:name`` names, looked up from the current folder too, as ``python -m`` does.

    Args:
        what: how messages call it. forms: what may be written in its place.

    Raises:
        InputError: there is no such thing.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module_name) or not re.fullmatch(r"[A-Za-z_][\w.]*", path):
        raise InputError(f"cannot read the {what} '{module_name}:{path}'", hint=forms)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise InputError(
                f"'{module_name}' needs the package '{error.name}', which is not installed", hint=f"pip install {error.name}"
            ) from None
        raise InputError(
            f"there is no module '{error.name}'",
            hint=f"run from the folder that has it, or pip install {error.name.partition('.')[0]}; {forms}",
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(
                f"'{module_name}' has no '{path}'", hint=_nearest(part, [n for n in vars(found) if n[:1] != "_"], f"{module_name}:")
            )
        found = getattr(found, part)
    return found


def _made(found: Any, spec: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(
            f"{spec} is a {type(found).__name__}", hint="name a function or class that gives a torch.nn.Module, or a module object"
        )
    torch.manual_seed(0)  # whatever the import has drawn
    try:
        model = found()
    except Exception as error:  # the user's own code may fail in any way
        raise InputError(f"{spec}() raised {type(error).__name__}: {error}", hint="the factory is called without arguments") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec}() gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file '{path}'", hint="--weights takes a state_dict saved by torch.save or safetensors")
    state = _read_state(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise InputError(f"the weights in '{path}' are not of this model: {' '.join(line.strip() for line in lines[1:3])[:400]}") from None


def _read_state(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArchiveError(f"cannot read '{path}': {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged or hostile file fails in many ways
        first = str(error).splitlines()[0][:200]
        raise ArchiveError(f"cannot read '{path}' as weights: {first}", hint="save it with torch.save(model.state_dict(), path)") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ArchiveError(
            f"'{path}' holds a {type(state).__name__}, not a state_dict", hint="save it with torch.save(model.state_dict(), path)"
        )
    return state


def make_inputs(texts: Sequence[str], dtype: str) -> tuple[Any, ...]:
    """The example inputs of all ``--input`` options.

    Raises:
        InputError: one of them cannot be read.
    """
    return tuple(make_input(text, dtype) for text in texts)


def make_input(text: str, dtype: str) -> Any:
    """A tensor of the size that ``text`` gives (``1x3x224x224``, or ``1x16:int64``): normal numbers, or small integers.
    ``[3x320x320,3x240x320]`` is a list of tensors.

    Raises:
        InputError: it is not of that form.
    """
    if text.startswith("[") and text.endswith("]"):
        return [make_input(part.strip(), dtype) for part in text[1:-1].split(",")]
    size, _, own = text.partition(":")
    kind = DTYPES.get(own or dtype)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) or kind is None:
        raise InputError(
            f"cannot read the input '{text}'",
            hint=f"write a size like 1x3x224x224, 1x16:int64 or [3x320x320]; the types are {', '.join(DTYPES)}",
        )
    dims = [int(part) for part in size.split("x")]
    if math.prod(dims) > MAX_ELEMENTS:
        raise InputError(f"the input '{text}' has {math.prod(dims):.0e} elements", hint="give a smaller size")
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point:
        return torch.randn(dims, generator=generator).to(kind)
    return torch.randint(0, 2, dims, generator=generator).to(kind)
