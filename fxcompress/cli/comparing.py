"""``fxcompress snapshot | diff | explain``: what graphs hold and in what they differ."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fxcompress.api.explaining import explain as explain_passes
from fxcompress.cli.files import check_suffix, check_writable, write_text
from fxcompress.cli.inputs import model_and_inputs, title, width
from fxcompress.cli.progress import Progress
from fxcompress.cli.quantizing import batches
from fxcompress.cli.sides import Side, snapshot_of
from fxcompress.cli.surroundings import add_to_summary, summary_room
from fxcompress.compare import codec
from fxcompress.compare.diff import diff as compare
from fxcompress.errors import InputError
from fxcompress.report.difference import Difference

SUFFIXES = {".txt": "text", ".md": "md", ".json": "json", ".xml": "junit", ".html": "html"}
"""The form that the end of a file's name asks for."""


def snapshot(options: Namespace) -> None:
    """Write the snapshot of a model to a file, or print it."""
    check_writable(options.out)
    with Progress() as show:
        taken = snapshot_of(options.spec, side_of(options), show)
    text = codec.encode(taken)
    if options.out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_text(options.out, text)
        print(f"wrote {options.out}: {len(taken.nodes)} nodes, {len(taken.tensors)} tensors")


def diff(options: Namespace) -> None:
    """Print or write what differs between two snapshots or models."""
    check_writable(options.out)
    form = form_of(options)
    side = side_of(options)
    with Progress() as show:
        base, head = (snapshot_of(spec, side, show) for spec in (options.base, options.head))
        missing = [spec for spec, taken in ((options.base, base), (options.head, head)) if taken.live is None]
        if options.latency and missing:
            raise InputError(f"'{missing[0]}' is a snapshot, which cannot run", hint="--latency needs two models")
        show("compare")
        found = compare(base, head, latency=options.latency)
    if base.model == head.model and options.base != options.head:
        found = replace(found, base=options.base, head=options.head)
    room = summary_room()
    add_to_summary(found.to_markdown(room) if room else "")
    deliver(rendered(found, form), options.out)


def explain(options: Namespace) -> None:
    """Print, and write if asked, what each pass does to the graph of a model."""
    check_writable(options.html)
    check_suffix(options.html, ("html",))
    with Progress() as show:
        model, inputs = model_and_inputs(options, show)
        told = explain_passes(
            model,
            inputs,
            options.pipeline,
            calibration=() if options.calibration is None else batches(options.calibration),
            numbers=not options.no_numbers,
            verify=not options.no_verify,
            bake=options.bake,
            name=title(options),
            on_step=show,
        )
    print(told.to_text(width()), end="")
    if options.html is not None:
        write_text(options.html, told.to_html())
        print(f"wrote {options.html}")


def side_of(options: Namespace) -> Side:
    """How the options say that models are loaded."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    given: dict[str, Any] = {name: getattr(options, name) for name in ("weights", "pipeline", "data") if hasattr(options, name)}
    return Side(
        inputs=tuple(options.input or ()),
        dtype=options.dtype,
        pretrained=options.pretrained,
        bake=options.bake,
        numbers=not options.no_numbers,
        **given,
    )


def form_of(options: Namespace) -> str:
    """The form that is asked for by ``--format``, else by the end of the file's name, else text."""
    if options.format is not None:
        return str(options.format)
    if options.out is None:
        return "text"
    check_suffix(options.out, [suffix.lstrip(".") for suffix in SUFFIXES])
    return SUFFIXES[options.out.suffix.lower()]


def rendered(difference: Difference, form: str) -> str:
    """The difference in one form; text as wide as the terminal."""
    return difference.to_text(width()) if form == "text" else difference.render(form)


def deliver(text: str, path: Path | None) -> None:
    """Write what was made, or print it."""
    if path is None:
        print(text, end="" if text.endswith("\n") or not text else "\n")
    else:
        write_text(path, text)
        print(f"wrote {path}")
