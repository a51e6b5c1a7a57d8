"""``fxcompress check``: holds the models of pyproject.toml to their baselines and budgets."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fxcompress.cli import check_report
from fxcompress.cli.comparing import deliver, form_of
from fxcompress.cli.config import Config, ModelConfig, find_config, read_config
from fxcompress.cli.files import check_suffix, check_writable, write_text
from fxcompress.cli.inputs import width
from fxcompress.cli.judging import Judge
from fxcompress.cli.outcome import Outcome, worst
from fxcompress.cli.progress import Progress
from fxcompress.cli.surroundings import add_to_summary, annotates, in_ci, summary_room
from fxcompress.compare.limits import nearest
from fxcompress.errors import InputError


def check(options: Namespace) -> int:
    """Check all models, or those that were named; 0 when all gates hold, 1 when one does not, 2 when a model could not be checked.

    A baseline is written only with ``--update``, and under continuous integration only with ``--allow-ci``, too.
    """
    for path, suffix in ((options.out, None), (options.html, "html"), (options.junit, "xml")):
        check_writable(path)
        check_suffix(path, (suffix,)) if suffix else None
    form = form_of(options)
    _check_update(options)
    config = read_config(options.config or find_config(Path.cwd()))
    chosen = _chosen(config, options.only)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with Progress() as show, _importable(config.folder):
        judge = Judge(config, options.update, show)
        outcomes = [judge.outcome(model) for model in chosen]
    _tell(outcomes, options, form)
    return int(worst(outcomes))


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A SPEC names modules of the project, wherever in it the command was given."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _check_update(options: Namespace) -> None:
    if options.allow_ci and not options.update:
        raise InputError("--allow-ci without --update", hint="it only says that baselines may be written")
    if options.update and in_ci() and not options.allow_ci:
        raise InputError(
            "no baseline is written here: the environment says that this is continuous integration (CI is set)",
            hint="run 'fxcompress check --update' at your desk, look at the difference and commit the file; a job that is meant to write "
            "baselines adds --allow-ci",
        )


def _chosen(config: Config, only: Sequence[str]) -> list[ModelConfig]:
    names = [model.name for model in config.models]
    for name in only:
        if name not in names:
            raise InputError(f"there is no model '{name}' in [tool.fxcompress.models]", hint=nearest(name, names, "models"))
    return [model for model in config.models if not only or model.name in only]


def _tell(outcomes: list[Outcome], options: Namespace, form: str) -> None:
    room = summary_room()
    add_to_summary(check_report.markdown(outcomes, room) if room else "")
    if options.html is not None:
        write_text(options.html, check_report.html(outcomes))
    if options.junit is not None:
        write_text(options.junit, check_report.junit(outcomes))
    deliver(check_report.rendered(outcomes, form, width()), options.out)
    if annotates() and (form == "text" or (options.out is not None and form != "github")):
        print(check_report.github(outcomes), end="")
    for path in (options.html, options.junit):
        if path is not None and form == "text" and options.out is None:
            print(f"wrote {path}")
