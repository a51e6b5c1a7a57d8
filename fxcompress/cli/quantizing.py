"""What ``compress --int8`` takes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from fxcompress.cli.spec import find
from fxcompress.errors import InputError, PipelineError
from fxcompress.pipeline.options import field_values, parse_call
from fxcompress.quant.options import Int8

LOADER = "write package.module:loader, a list of batches, a DataLoader, or a function without arguments that gives one"
EVALUATE = "write package.module:function; it takes a module and gives its score, higher is better"


def quantization(options: Namespace) -> dict[str, Any]:
    """What the options of the command line mean for ``compress``.

    Raises:
        InputError: one of them is wrong, or has no meaning without another.
    """
    given = {name: getattr(options, name, None) for name in ("int8_options", "calibration", "evaluate")}
    asked = bool(getattr(options, "int8", False))
    for name in ("int8_options", "evaluate"):
        if given[name] is not None and not asked:
            raise InputError(f"--{name.replace('_', '-')} without --int8", hint="add --int8")
    found: dict[str, Any] = {} if given["calibration"] is None else {"calibration": batches(given["calibration"])}
    if asked:
        found["quantize"] = int8(given["int8_options"] or "", given["evaluate"])
    if asked and found["quantize"].static and "calibration" not in found:
        raise InputError("--int8 needs calibration data", hint="add --calibration package.module:loader")
    return found


def int8(text: str, evaluate: str | None = None) -> Int8:
    """The options that are written as ``name=value,name=value``. ``evaluate``: where the function is, for ``max_drop``.

    Raises:
        InputError: one of them is wrong.
    """
    try:
        values = field_values(Int8, "Int8", parse_call(f"int8{{{text}}}")[1])
    except PipelineError as error:
        raise InputError(error.message, hint=error.hint or 'write for example "observer=percentile,ignore=[head.*]"') from None
    if evaluate is not None:
        values["evaluate"] = _found(evaluate, "function", EVALUATE)
    return Int8(**values)


def batches(spec: str) -> Iterable[Any]:
    """The calibration data that ``spec`` names; a function is called.

    Raises:
        InputError: there is no such thing, or it is no data.
    """
    found = _found(spec, "calibration data", LOADER)
    if callable(found) and not isinstance(found, Iterable):
        try:
            found = found()
        except Exception as error:  # the user's own code may fail in any way
            raise InputError(f"{spec}() raised {type(error).__name__}: {error}", hint="it is called without arguments") from error
    if not isinstance(found, Iterable):
        raise InputError(f"{spec} gives a {type(found).__name__}, not a number of batches", hint=LOADER)
    return found


def _found(spec: str, what: str, forms: str) -> Any:
    module_name, _, path = spec.partition(":")
    return find(module_name, path, what, forms)
