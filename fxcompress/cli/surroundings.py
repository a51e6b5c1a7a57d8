"""Where the command line runs: at somebody's desk or in continuous integration, and what the latter wants to be told."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_CI = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "TEAMCITY_VERSION", "JENKINS_URL", "BUILDKITE")
_NO = ("", "0", "false", "no", "off")
SUMMARY = "GITHUB_STEP_SUMMARY"
SUMMARY_LIMIT = 1024 * 1024
"""Bytes that GitHub takes for the summary of one step."""


def in_ci(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether no person is there to look at a new baseline: one of the variables that CI systems set is set, and not to "false"."""
    return any(_on(environ, name) for name in _CI)


def annotates(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether lines such as ``::error file=...`` on stdout become annotations."""
    return _on(environ, "GITHUB_ACTIONS")


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() not in _NO


def summary_room(environ: Mapping[str, str] = os.environ) -> int:
    """Bytes of Markdown that still fit into the summary of this step; 0 where there is none."""
    path = environ.get(SUMMARY, "")
    if not path:
        return 0
    used = Path(path).stat().st_size if Path(path).is_file() else 0
    return max(0, SUMMARY_LIMIT - used - 4096)


def add_to_summary(text: str, environ: Mapping[str, str] = os.environ) -> None:
    """Append Markdown to the summary of this step, where the environment names one.

    What goes wrong is said on stderr and no more: the result of the command does not depend on it.
    """
    path = environ.get(SUMMARY, "")
    if not path or not text:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
    except OSError as error:
        print(f"fxcompress: the step summary '{path}' cannot be written: {error.strerror}", file=sys.stderr)
