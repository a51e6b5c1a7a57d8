"""The command line: ``fxcompress compress | plan | apply | passes | bench | minify | snapshot | diff | check | explain``.

Only the standard library is imported here, so that ``--help`` and a wrong argument answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

_SPEC = "torchvision:NAME, timm:NAME, package.module:factory, or a file saved by fxcompress"
_HOMES = {"check": "checking", "diff": "comparing", "explain": "comparing", "snapshot": "comparing"}  # the others: "commands"
_INPUT = "1x3x224x224, 1x16:int64 or [3x320x320]; once per argument of forward"
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_BAKE = "accept weight norm and other parametrizations, with their present value"
_PRUNE = 'remove channels first: the share of them (0.5), options of prune-select ("macs=-40%%,criterion=l1"), or a plan file'
_CALIBRATION = "typical inputs for --int8 or --prune: package.module:loader, a list of batches, a DataLoader, or a function that gives one"
_FORMATS = ("text", "md", "json", "junit", "html", "github")
_DATA = "inputs for the numeric fingerprints instead of seeded ones: package.module:loader, as for calibration"
_TARGETS = "auto, none, or the name of one: cpu, openvino, onnxruntime"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="fxcompress", description="Makes trained PyTorch networks faster and smaller, and proves every rewrite.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compress = _command(
        commands,
        "compress",
        "rewrite a model, measure it, write it to a file",
        "fxcompress compress torchvision:resnet18 --input 1x3x224x224 --out fast.fxc",
    )
    _model_arguments(compress)
    compress.add_argument("--out", type=Path, metavar="FILE", help="write the compressed model to this file; fxcompress.load reads it")
    compress.add_argument("--report", type=Path, metavar="FILE", help="write the report; .txt, .md, .json or .html decides its form")
    compress.add_argument("--target", default="auto", help=f"what the result runs on: {_TARGETS} (default: auto)")
    compress.add_argument("--pipeline", metavar="TEXT", help='passes to run instead of the default ones, e.g. "fold-norm,fuse"')
    compress.add_argument("--prune", metavar="WHAT", help=_PRUNE)
    compress.add_argument("--int8", action="store_true", help="quantize where that is faster; needs --calibration")
    compress.add_argument("--int8-options", metavar="TEXT", help='with --int8: options, e.g. "observer=percentile,ignore=[head.*]"')
    compress.add_argument("--calibration", metavar="SPEC", help=_CALIBRATION)
    compress.add_argument("--evaluate", metavar="SPEC", help="package.module:function of a module that gives its score, for max_drop")
    compress.add_argument("--no-verify", action="store_true", help="do not compare the outputs after every pass")
    compress.add_argument("--bake", action="store_true", help=_BAKE)

    plan = _command(
        commands,
        "plan",
        "choose the channels to remove and write the plan",
        "fxcompress plan torchvision:resnet18 --input 1x3x224x224 --ratio 0.3 -o plan.json",
    )
    _model_arguments(plan)
    _plan_arguments(plan)

    apply = _command(
        commands, "apply", "remove the channels that a plan names", "fxcompress apply plan.json torchvision:resnet18 --out small.fxc"
    )
    apply.add_argument("plan", type=Path, metavar="PLAN", help="a file that fxcompress plan has written")
    _model_arguments(apply, inputs_needed=False)
    apply.add_argument("--out", type=Path, metavar="FILE", help="write the pruned model to this file; fxcompress.load reads it")
    apply.add_argument("--report", type=Path, metavar="FILE", help="write the report; .txt, .md, .json or .html decides its form")
    apply.add_argument("--bake", action="store_true", help=_BAKE)

    _command(commands, "passes", "list the registered passes and their options", "fxcompress passes")

    bench = _command(
        commands, "bench", "compare eager, channels_last and compressed", "fxcompress bench torchvision:resnet18 --input 8x3x224x224"
    )
    _model_arguments(bench)
    bench.add_argument("--out", type=Path, metavar="FILE", help="write the table; .txt, .md or .json decides its form")
    bench.add_argument("--target", default="auto", help=f"as for compress: {_TARGETS} (default: auto)")
    bench.add_argument("--seconds", type=_positive, default=2.0, help="time to measure each form (default: 2)")

    minify = _command(
        commands,
        "minify",
        "shrink a failing model and pipeline to a few nodes",
        'fxcompress minify my.models:net --input 1x3x64x64 --pipeline "fold-norm,my-pass"',
    )
    _model_arguments(minify)
    minify.add_argument("--pipeline", metavar="TEXT", help="the failing passes (default: those of compress)")
    minify.add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path("fxcompress-minified"), help="where to write (default: fxcompress-minified)"
    )
    _comparing_commands(commands)
    return top


def _comparing_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    taken = _command(
        commands,
        "snapshot",
        "write what a graph is, without its weights, for a later diff",
        "fxcompress snapshot torchvision:resnet18 --input 1x3x224x224 -o resnet18.fxs",
    )
    _model_arguments(taken)
    taken.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write to this file (default: print); the usual end of its name is .fxs"
    )
    taken.add_argument("--pipeline", metavar="TEXT", help='passes that the model goes through first; "default" for those of compress')
    taken.add_argument("--data", metavar="SPEC", help=_DATA)
    taken.add_argument("--no-numbers", action="store_true", help="do not run the model: no numeric fingerprints")
    taken.add_argument("--bake", action="store_true", help=_BAKE)

    diff = _command(
        commands,
        "diff",
        "show what differs between two versions of a network",
        "fxcompress diff resnet18.fxs my.models:net --input 1x3x224x224",
    )
    for name in ("base", "head"):
        diff.add_argument(name, metavar=name.upper(), help=f"a snapshot, or a model: {_SPEC}")
    _loading_arguments(diff, "for BASE or HEAD that is a model: ")
    diff.add_argument("--latency", action="store_true", help="time both, interleaved; needs two models")
    diff.add_argument("--no-numbers", action="store_true", help="do not run models: no comparison of their outputs")
    diff.add_argument("--bake", action="store_true", help=_BAKE)
    _form_arguments(diff)

    _check_arguments(
        _command(
            commands,
            "check",
            "hold the models of pyproject.toml to their baselines and budgets",
            "fxcompress check --update writes the baselines, fxcompress check compares with them",
            "Exit status 0: all gates hold, 1: one is violated or a baseline is missing, 2: a model could not be checked. No baseline is "
            "written without --update, and in continuous integration not without --allow-ci.",
        )
    )

    explain = _command(
        commands,
        "explain",
        "show the graph's difference after each pass of a pipeline",
        "fxcompress explain torchvision:resnet18 --input 1x3x224x224 --html passes.html",
    )
    _model_arguments(explain)
    explain.add_argument("--pipeline", metavar="TEXT", help="passes to run (default: those of compress)")
    explain.add_argument("--html", type=Path, metavar="FILE", help="write a page that steps through the passes")
    explain.add_argument("--calibration", metavar="SPEC", help="typical inputs for passes that need some: package.module:loader")
    explain.add_argument("--no-numbers", action="store_true", help="do not compare the values of the nodes")
    explain.add_argument("--no-verify", action="store_true", help="do not compare the outputs after every pass")
    explain.add_argument("--bake", action="store_true", help=_BAKE)


def _check_arguments(check: argparse.ArgumentParser) -> None:
    check.add_argument("--update", action="store_true", help="write the baselines that are missing or differ; look at them and commit them")
    check.add_argument("--allow-ci", action="store_true", help="with --update: write baselines even where CI is set")
    check.add_argument("--only", action="append", default=[], metavar="NAME", help="check this model only; may be repeated")
    check.add_argument("--config", type=Path, metavar="FILE", help="with [tool.fxcompress] (default: the nearest pyproject.toml)")
    check.add_argument("--html", type=Path, metavar="FILE", help="write a page with both graphs side by side, too")
    check.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, too")
    check.add_argument("--threads", type=_count, metavar="N", help="threads of torch")
    _form_arguments(check)


def _form_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=_FORMATS, help="of what is printed or written (default: by the name of FILE, else text)")
    command.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write to this file; .txt, .md, .json, .xml or .html decides its form"
    )


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, example: str, more: str = ""
) -> argparse.ArgumentParser:
    description = f"{text[0].upper()}{text[1:]}. {more}".strip()
    return commands.add_parser(name, help=text, description=description, epilog=f"example: {example}", allow_abbrev=False)


def _plan_arguments(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the plan to this file; fxcompress apply reads it")
    plan.add_argument("--ratio", metavar="SHARE", help="share of the channels to remove (default: 0.5)")
    plan.add_argument("--criterion", metavar="NAME", help="how channels are scored: l1, l2, fpgm, ... (default: l2)")
    plan.add_argument("--scope", metavar="NAME", help="local, global or isomorphic: where channels are ranked (default: local)")
    plan.add_argument("--budget", action="append", default=[], metavar="LIMIT", help="instead of a ratio: macs=-40%%, latency=12ms, ...")
    plan.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="keep all channels of these layers: head.*")
    plan.add_argument("--round-to", metavar="N", help="what remains in a layer is a multiple of this (default: 8)")
    plan.add_argument("--bake", action="store_true", help=_BAKE)


def _model_arguments(command: argparse.ArgumentParser, *, inputs_needed: bool = True) -> None:
    command.add_argument("spec", metavar="SPEC", help=_SPEC)
    command.add_argument(
        "--input",
        action="append",
        required=inputs_needed,
        metavar="SIZE",
        help=_INPUT + ("" if inputs_needed else " (default: those of the plan)"),
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help="state_dict to load: torch.save or safetensors")
    _rest_of_model_arguments(command)


def _loading_arguments(command: argparse.ArgumentParser, when: str) -> None:
    command.add_argument("--input", action="append", metavar="SIZE", help=when + _INPUT)
    _rest_of_model_arguments(command)


def _rest_of_model_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the model and its inputs (default: float32)")
    command.add_argument("--pretrained", action="store_true", help="let torchvision or timm fetch trained weights")
    command.add_argument("--threads", type=_count, metavar="N", help="threads of torch")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of threads; write 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is no time in seconds; write a number above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when ``check`` found a violated gate, 2 for mistakes and failures, 130 for Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\nfxcompress: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2 if options.command == "check" else 0  # nobody may take a result for green that was not told


def _run(options: argparse.Namespace) -> int:
    from fxcompress.errors import FxCompressError

    try:
        home = importlib.import_module(f"fxcompress.cli.{_HOMES.get(options.command, 'commands')}")
        status: int | None = getattr(home, options.command)(options)
        sys.stdout.flush()
    except FxCompressError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"fxcompress: {error}{notes}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except (Exception, SystemExit):  # of the user's own code, or a bug; 1 is for violated gates only
        traceback.print_exc()
        return 2
    return status or 0


if __name__ == "__main__":
    raise SystemExit(main())
