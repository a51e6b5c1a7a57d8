"""The command line: ``fxcompress compress | plan | apply | passes | bench | minify``.

Only the standard library is imported here, so that ``--help`` and a wrong argument answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_SPEC = "torchvision:NAME, timm:NAME, package.module:factory, or a file saved by fxcompress"
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_BAKE = "accept weight norm and other parametrizations, with their present value"
_PRUNE = 'remove channels first: the share of them (0.5), options of prune-select ("macs=-40%%,criterion=l1"), or a plan file'
_CALIBRATION = "typical inputs for --int8 or --prune: package.module:loader, a list of batches, a DataLoader, or a function that gives one"
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
    return top


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: {example}", allow_abbrev=False
    )


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
        help="1x3x224x224, 1x16:int64 or [3x320x320]; once per argument of forward"
        + ("" if inputs_needed else " (default: those of the plan)"),
    )
    command.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the model and its inputs (default: float32)")
    command.add_argument("--weights", type=Path, metavar="FILE", help="state_dict to load: torch.save or safetensors")
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
    """Run one command; returns the exit status: 0, 2 for the user's mistakes, 130 for Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\nfxcompress: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(options: argparse.Namespace) -> int:
    from fxcompress.cli import commands
    from fxcompress.errors import FxCompressError

    try:
        getattr(commands, options.command)(options)
        sys.stdout.flush()
    except FxCompressError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"fxcompress: {error}{notes}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
