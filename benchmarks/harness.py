"""Competitors in processes of their own, timed block by block in turn.

Threads of different runtimes disturb each other, so every competitor lives in one process. All processes prepare and warm up
one after the other, and are then asked in turn to time a few calls while the others sleep.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Prepared = tuple[Callable[[], object], dict[str, Any]]
"""A function that runs the network once, and what else is worth telling about it."""


def serve(prepare: Callable[[], Prepared]) -> None:
    """Prepare, say so, then time as many calls as every line on standard input asks for."""
    warnings.filterwarnings("ignore")
    import torch

    with torch.inference_mode():
        began = time.perf_counter()
        call, facts = prepare()
        call()
        ready = time.perf_counter() - began
        call()
        print(json.dumps({"ready": ready, **facts}), flush=True)
        for line in sys.stdin:
            call()
            taken = []
            for _ in range(int(line)):
                began = time.perf_counter()
                call()
                taken.append(time.perf_counter() - began)
            print(json.dumps(taken), flush=True)


class Worker:
    """A process that runs ``command``, which calls :func:`serve`; ``hello`` is what it said when ready, None if it died."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed by stop(); not a pipe: a peer that talks much would block
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, errors="replace"
        )
        self.samples: list[float] = []
        self.hello = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[")):
                try:
                    return json.loads(line)
                except json.JSONDecodeError:  # a peer's own output that only looks like an answer
                    continue
        return None

    def time(self, calls: int) -> list[float]:
        assert self.process.stdin is not None
        print(calls, file=self.process.stdin, flush=True)
        return self._answer() or []

    def stop(self) -> str:
        """End the process; the last line of its error, or nothing if all went well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.errors.seek(0)
        error = blame(self.errors.read())
        self.errors.close()
        return error if self.process.returncode else ""


def options_of(parser: argparse.ArgumentParser, networks: list[str], engines: list[str], others: Iterable[str]) -> argparse.Namespace:
    """What a latency benchmark is asked. ``others``: engines that run only when they are named."""
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--engines", nargs="+", default=engines, choices=[*engines, *others])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=5, help="blocks per engine and network")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a block")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


Rows = dict[str, Any]
"""Network -> what was measured of it."""


def sweep(
    options: argparse.Namespace, prepare: Callable[..., Prepared], measure: Callable[..., Any], show: Callable[[int, Rows], str]
) -> None:
    """Serve one engine, if that is asked; else measure every network at every batch size and print what ``show`` makes of it."""
    if options.serve:
        serve(lambda: prepare(options.serve, options.networks[0], options.batch[0], options.threads))
        return
    figures: dict[str, Rows] = {}
    for batch in options.batch:
        rows = figures[f"batch {batch}"] = {}
        for name in options.networks:
            print(f"batch {batch}: {name}", file=sys.stderr, flush=True)
            rows[name] = measure(name, batch, options.threads, options.engines, options.blocks, options.seconds)
            if options.out:
                options.out.write_text(json.dumps(figures, indent=1))
        print(show(batch, rows), flush=True)


def blame(output: str) -> str:
    """The line of a traceback that names the error, at most 160 characters; the last line where none does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return (named or lines or ["no output"])[-1][:160]


def rounds(commands: dict[str, list[str]], blocks: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Median milliseconds per call of every competitor over ``blocks`` blocks of ``seconds``, with what each said; or its error."""
    workers = {name: Worker(command) for name, command in commands.items()}
    for block in range(blocks):
        for worker in workers.values():
            if worker.hello is not None:
                _block(worker, block, seconds)
    result: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        error = worker.stop()
        known = {"ms": 1e3 * statistics.median(worker.samples), **worker.hello} if worker.samples else {"ms": None, "error": error}
        result[name] = known
    return result


def _block(worker: Worker, block: int, seconds: float) -> None:
    time.sleep(0.2)
    calls = 3 if not worker.samples else max(3, int(seconds / statistics.median(worker.samples)))
    taken = worker.time(calls)
    if block <= 1:  # the first block only gives an idea of how long a call takes
        worker.samples = taken
    else:
        worker.samples += taken


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [v for v in values if v]
    return math.exp(statistics.fmean(map(math.log, known))) if known else None
