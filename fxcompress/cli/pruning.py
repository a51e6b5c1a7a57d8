"""The commands ``plan`` and ``apply``, and what ``compress --prune`` takes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fxcompress import api
from fxcompress.cli.files import check_suffix, check_writable, write_text
from fxcompress.cli.inputs import model_and_inputs, model_of, title, width
from fxcompress.cli.progress import Progress
from fxcompress.cli.spec import make_inputs
from fxcompress.errors import InputError, PipelineError
from fxcompress.passes.prune_select import PruneSelect
from fxcompress.pipeline.options import build, parse_call
from fxcompress.pruning.options import Prune
from fxcompress.pruning.plan import PruningPlan

REPORT_FORMS = ("txt", "md", "json", "html")

HINT = 'write a share (0.5), the options of prune-select ("ratio=0.5,criterion=l1,ignore=[head.*]" or "macs=-40%"), or the name of a plan'


def asked(text: str) -> Prune | PruningPlan:
    """What ``--prune`` says.

    Raises:
        InputError: it is no share, no options and no file. ArchiveError: the plan in that file cannot be read.
    """
    if Path(text).is_file():
        return PruningPlan.load(text)
    try:
        return Prune(ratio=float(text))
    except InputError:
        raise
    except ValueError:
        pass
    if "=" not in text:
        raise InputError(f"cannot read '--prune {text}'", hint=HINT)
    return selected(text)


def selected(text: str) -> Prune:
    """The options that are written as those of the pass ``prune-select``, with ``compensate`` besides.

    Raises:
        InputError: one of them is wrong.
    """
    try:
        step = build(PruneSelect, parse_call(f"{PruneSelect.name}{{{text}}}")[1])
    except PipelineError as error:
        raise InputError(error.message, hint=error.hint or HINT) from None
    assert isinstance(step, PruneSelect)
    return step.options


def plan(options: Namespace) -> None:
    """Choose channels, print the plan, and write it."""
    check_writable(options.out)
    chosen = selected(_options_text(options))
    with Progress() as show:
        model, inputs = model_and_inputs(options, show)
        found = api.plan(model, inputs, chosen, bake=options.bake, on_step=show)
    print(found, end="")
    if options.out is not None:
        found.save(options.out)
        print(f"wrote {options.out}")


def _options_text(options: Namespace) -> str:
    """The options of the command line as those of the pass."""
    given = [f"{name}={value}" for name in ("ratio", "criterion", "scope", "round_to") if (value := getattr(options, name)) is not None]
    for limit in options.budget:
        what, equals, amount = limit.partition("=")
        if not equals or what not in ("macs", "params", "bytes", "latency"):
            raise InputError(f"cannot read '--budget {limit}'", hint="write macs=-40%, params=3.5M, bytes=-40% or latency=12ms")
        given.append(f"{what}={amount!r}")
    if options.ignore:
        given.append(f"ignore=[{','.join(map(repr, options.ignore))}]")
    return ",".join(given)


def apply(options: Namespace) -> None:
    """Remove the channels that a plan names, print the report, and write the model."""
    check_writable(options.out)
    check_writable(options.report)
    check_suffix(options.report, REPORT_FORMS)
    chosen = PruningPlan.load(options.plan)
    with Progress() as show:
        model = model_of(options, show)
        inputs = make_inputs(options.input, options.dtype) if options.input else chosen.inputs.make()
        small: Any = api.prune(model, inputs, chosen, bake=options.bake, name=title(options), on_step=show)
        show("write")
        print(small.report.to_text(width()), end="")
        if options.report is not None:
            write_text(options.report, small.report.render(options.report.suffix))
            print(f"wrote {options.report}")
        if options.out is not None:
            small.save(options.out)
            print(f"wrote {options.out}")
