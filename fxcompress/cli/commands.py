"""What the commands of the command line do."""

from __future__ import annotations

import copy
import dataclasses
import json
from argparse import Namespace
from collections.abc import Callable
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.fx import GraphModule

from fxcompress import api
from fxcompress.capture import Part, capture
from fxcompress.cli.files import check_folder, check_suffix, check_writable, write_text
from fxcompress.cli.inputs import model_and_inputs, title, width
from fxcompress.cli.progress import Progress
from fxcompress.cli.pruning import REPORT_FORMS, apply, asked, plan
from fxcompress.cli.quantizing import quantization
from fxcompress.errors import FxCompressError, InputError, PipelineError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pass, Pipeline, registry
from fxcompress.pipeline.minify import failure_of
from fxcompress.pipeline.minify import minify as shrink
from fxcompress.report import environment, units
from fxcompress.storage import save
from fxcompress.targets.timing import Timing, interleaved

__all__ = ["apply", "bench", "compress", "minify", "passes", "plan"]

TABLE_FORMS = ("txt", "md", "json")


def compress(options: Namespace) -> None:
    """Compress a model, print its report and write what was asked for."""
    check_writable(options.out)
    check_writable(options.report)
    check_suffix(options.report, REPORT_FORMS)
    if options.out is not None and options.report is not None and options.out.absolute() == options.report.absolute():
        raise InputError(f"--out and --report are the same file '{options.out}'", hint="give them two names")
    with Progress() as show:
        model, inputs = model_and_inputs(options, show)
        fast = _compressed(model, inputs, options, show)
        show("write")
        print(fast.report.to_text(width()), end="")
        if options.report is not None:
            write_text(options.report, fast.report.render(options.report.suffix))
            print(f"wrote {options.report}")
        if options.out is not None:
            fast.save(options.out)
            print(f"wrote {options.out}")


def _compressed(model: nn.Module, inputs: tuple[Any, ...], options: Namespace, show: Callable[[str], None]) -> Any:
    settings = {key: getattr(options, key) for key in ("pipeline", "bake") if hasattr(options, key)}
    verify = not getattr(options, "no_verify", False)
    if getattr(options, "prune", None) is not None:
        settings["prune"] = asked(options.prune)
    settings |= quantization(options)
    return api.compress(model, inputs, target=options.target, verify=verify, name=title(options), on_step=show, **settings)


# -- passes --------------------------------------------------------------------------------------------------------


def passes(options: Namespace) -> None:
    """Print the registered passes."""
    entries = sorted(entry_points(group=registry.GROUP), key=lambda entry: entry.name)
    rows = [_pass_row(entry) for entry in entries]
    print(
        tabulate(rows, ["pass", "promise", "options", "what it does", "from"], maxcolwidths=[None, None, 26, 46, 20], disable_numparse=True)
    )


def _pass_row(entry: EntryPoint) -> list[str]:
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    try:
        kind = registry.lookup(entry.name)
    except FxCompressError as error:  # a broken plugin must not hide the others
        return [entry.name, "", "", units.clip(error.message, 200), origin]
    text = (kind.__doc__ or "").strip().partition("\n")[0]
    return [entry.name, kind.semantics.name.lower(), "\n".join(_options(kind)), text, origin]


def _options(kind: type[Pass]) -> list[str]:
    lines = []
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines += [f"{field.name}={_shown(default)}"] if field.init else []
    return lines


def _shown(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "..."  # has to be given
    return default.name.lower() if isinstance(default, Enum) else str(default)


# -- bench ---------------------------------------------------------------------------------------------------------


def bench(options: Namespace) -> None:
    """Time the model as it is, in channels_last, and compressed."""
    check_writable(options.out)
    check_suffix(options.out, TABLE_FORMS)
    with Progress() as show:
        model, inputs = model_and_inputs(options, show)
        fast = _compressed(model, inputs, options, show)
        show("measure")
        timings = interleaved(_forms(model, fast, inputs), seconds=options.seconds, blocks=5)
    names = {"compressed": f"compressed ({fast.report.target})"}
    rows = _bench_rows({names.get(name, name): timing for name, timing in timings.items()})
    print(_bench_table(options, rows, "simple"))
    if options.out is not None:
        write_text(options.out, _bench_text(options, rows, timings))
        print(f"wrote {options.out}")


def _forms(model: nn.Module, fast: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    forms: dict[str, Callable[[], object]] = {"eager": lambda: model(*inputs)}
    given = Inputs(inputs)
    if any(t.dim() == 4 for t in given.tensors()):
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        images = given.map_tensors(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)
        forms["eager channels_last"] = lambda: images.call(last)
    forms["compressed"] = lambda: fast(*inputs)
    return forms


def _bench_rows(timings: dict[str, Timing]) -> list[tuple[str, str, str, str]]:
    eager = timings["eager"]
    return [
        (
            name,
            units.milliseconds(t.median),
            units.milliseconds(t.spread),
            units.speedup(eager.median, t.median, (eager.spread, t.spread)) if t is not eager else "",
        )
        for name, t in timings.items()
    ]


def _bench_table(options: Namespace, rows: list[tuple[str, str, str, str]], form: str) -> str:
    head = f"{title(options)}, inputs {' '.join(options.input)}, {options.dtype}, {torch.get_num_threads()} threads"
    table = tabulate(rows, ["", "median", "spread", "against eager"], tablefmt=form, colalign=("left", "right", "right", "left"))
    return f"{head}\n\n{table}"


def _bench_text(options: Namespace, rows: list[tuple[str, str, str, str]], timings: dict[str, Timing]) -> str:
    suffix = options.out.suffix.lower()
    if suffix != ".json":
        return _bench_table(options, rows, "pipe" if suffix == ".md" else "simple") + "\n"
    forms = [{"name": name, "latency_ms": t.median, "latency_spread_ms": t.spread} for name, t in timings.items()]
    facts = dataclasses.asdict(environment())
    document = {
        "schema_version": 1,
        "model": options.spec,
        "inputs": options.input,
        "dtype": options.dtype,
        "environment": facts,
        "forms": forms,
    }
    return json.dumps(document, indent=1) + "\n"


# -- minify --------------------------------------------------------------------------------------------------------

_SCRIPT = '''"""Shows a failure of fxcompress again: {failure}."""

from pathlib import Path

import torch

import fxcompress

here = Path(__file__).parent
module = fxcompress.load(here / "graph.fxc")
args = torch.load(here / "inputs.pt", weights_only=True)
print(module.graph)
fxcompress.Pipeline.parse({pipeline!r}).execute(module, fxcompress.Inputs(args))
'''


def minify(options: Namespace) -> None:
    """Shrink a failing model and pipeline, and write the rest with a script that fails."""
    check_folder(options.out)
    pipeline = Pipeline.parse(options.pipeline or api.REWRITES)
    with Progress() as show:
        model, inputs = model_and_inputs(options, show)
        show("capture")
        part = _failing(capture(model, inputs).parts, pipeline, show)
        runs = _Counter(show)
        small, given, passes = shrink(part.graph, part.inputs, pipeline, on_run=runs)
    failure = failure_of(small, given, passes.passes)
    assert failure is not None
    _write_case(options.out, small, given, passes, failure.error.__name__)
    print(small.graph)
    print(
        f"\n{failure.error.__name__} in pipeline '{passes}': {units.plural(len(part.graph.graph.nodes), 'node')} shrunk to "
        f"{len(small.graph.nodes)} in {units.plural(runs.number, 'run')}\nto reproduce: python {options.out / 'reproduce.py'}"
    )


def _failing(parts: tuple[Part, ...], pipeline: Pipeline, show: Callable[[str], None]) -> Part:
    for part in parts:
        show(f"run {part.path or 'the pipeline'}")
        if failure_of(part.graph, part.inputs, pipeline.passes) is not None:
            return part
    raise PipelineError(f"the pipeline '{pipeline}' does not fail on this model", hint="give the pipeline of a failing run with --pipeline")


class _Counter:
    def __init__(self, show: Callable[[str], None]) -> None:
        self.show, self.number = show, 0

    def __call__(self, what: str) -> None:
        self.number += 1
        self.show(f"run {self.number}: {what}")


def _write_case(folder: Path, module: GraphModule, inputs: Inputs, passes: Pipeline, failure: str) -> None:
    folder.mkdir(exist_ok=True)
    save(module, folder / "graph.fxc")
    torch.save(inputs.args, folder / "inputs.pt")
    write_text(folder / "reproduce.py", _SCRIPT.format(failure=failure, pipeline=str(passes)))
