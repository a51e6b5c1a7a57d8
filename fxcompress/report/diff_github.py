"""A difference as workflow commands of GitHub Actions, which show it at the lines of the user's code.

Form and escapes: "Workflow commands for GitHub Actions" in GitHub's documentation and ``toolkit/packages/core/src/command.ts``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fxcompress.report import diff_rows, units
from fxcompress.report.diff_values import Phrase, joined, plain
from fxcompress.report.findings import Told, told
from fxcompress.report.inert import workflow_message, workflow_property

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference

MOST = 10
"""GitHub shows no more errors of one step."""
_MESSAGE = 600


def render(difference: Difference, root: Path | None = None, limit: int = MOST) -> str:
    """At most ``limit`` commands, the worst first; "" for no difference.

    They are errors, or notices where there are gates and all of them hold. ``root``: of the repository, to which files are
    relative; None looks for it above the working directory.
    """
    root = (root or _root(Path.cwd())).resolve()
    name = plain(diff_rows.title(difference))
    level = "notice" if difference.gates and not diff_rows.violated(difference) else "error"
    lines = [_command("error", f"{name}: gate violated", plain(diff_rows.gate_sentence(g)), "") for g in diff_rows.violated(difference)]
    lines += [_command(level, f"{name}: contract", plain(phrase), "") for phrase in diff_rows.contract_sentences(difference)]
    drop = diff_rows.first_drop(difference)
    if drop and difference.numbers.first_drop is not None:
        lines.append(_command(level, f"{name}: numbers", plain(drop), _properties(difference.numbers.first_drop.source, root)))
    stories = told(difference)
    lines += [_story(story, level, name, root) for story in stories[:limit]]
    total = len(lines) + len(stories[limit:])
    if total > limit:
        more = f"and {units.plural(total - limit + 1, 'more finding')}; the other forms of the report list them"
        lines = [*lines[: limit - 1], _command(level, name, more, "")]
    return "".join(f"{line}\n" for line in lines)


def _story(story: Told, level: str, name: str, root: Path) -> str:
    more = len(story.findings) - 5
    examples: Phrase = joined(story.examples(5))
    rest = f" and {more} more" if more > 0 else ""
    text = f"{plain(story.subject)}: {plain(story.statement)}" + (f" ({plain(examples)}{rest})" if examples else "")
    sources = [finding.place.source for finding in story.findings]
    where = next((found for found in (_properties(source, root) for source in sources) if found), "")
    seen = "" if where or not sources[0] else f" [{units.place(sources[0])}]"
    return _command(level, f"{name}: {story.first.section}", text + seen, where)


def _command(level: str, title: str, message: str, where: str) -> str:
    start = f"::{level} {where}title={workflow_property(units.clip(title, 120))}"
    return f"{start}::{workflow_message(units.clip(message, _MESSAGE))}"


def _properties(source: str | None, root: Path) -> str:
    """ "file=models/net.py,line=12," for a file of the repository, else "" (a node of a library has no place in it)."""
    path, _, line = (source or "").rpartition(":")
    if not path or not line.isdecimal() or len(line) > 9:
        return ""
    file = inside(path, root)
    return f"file={workflow_property(file)},line={int(line)}," if file else ""


def inside(path: str, root: Path) -> str:
    """``path`` relative to the repository at ``root``, with forward slashes; "" when it is no file of it.

    A snapshot may come from a checkout at another place: there the longest end of the path that is a file here counts.
    """
    if "site-packages" in path or "dist-packages" in path or "\0" in path:
        return ""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    absolute = bool(parts) and parts[0].endswith(("/", ":"))
    ends = [parts] if not absolute else [parts[at:] for at in range(1, len(parts))]
    if absolute and Path(path).is_relative_to(root):
        ends = [Path(path).relative_to(root).parts]
    elif absolute and _exists(Path(path)):
        return ""  # a file of this machine, but not of the repository
    return next(("/".join(end) for end in ends if ".." not in end and _exists(root.joinpath(*end))), "")


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system is the name of no file
        return False


def _root(folder: Path) -> Path:
    return next((above for above in (folder, *folder.parents) if (above / ".git").exists()), folder)
