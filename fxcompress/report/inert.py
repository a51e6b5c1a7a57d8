"""Texts of strangers in the forms that other programs read: Markdown, Mermaid, workflow commands, XML.

Whoever sends a pull request chooses the names in it. No name may end a table or a code block, link anywhere, call a person by
"@", or be read as a command.
"""

from __future__ import annotations

import re

from fxcompress.report import units
from fxcompress.report.diff_values import Name, Phrase
from fxcompress.report.markdown import escape

_JOINER = "\u2060"  # word joiner: no width, no break, and no address around it is read as one
_CELL = 160


def code(text: str) -> str:
    """``text`` as a code span, in which GitHub sees no markup, mention, issue number or address. Safe in a table.

    A backtick and a pipe, which would need an escape that depends on what stands before them, become look-alikes.
    """
    flat = units.clip(text, _CELL).replace("`", "'").replace("|", "\u00a6").strip()
    return f"`{flat}`" if flat else ""


def prose(text: str) -> str:
    """``text`` as Markdown text without markup, mentions, issue numbers and addresses; not for the start of a line."""
    quiet = re.sub(r"[@#](?=\w)|:(?=//)|(?i:www|gh)(?=[.-])", lambda m: m[0] + _JOINER, units.clip(text, 4 * _CELL))
    return escape(quiet).replace("-\\>", "→")


def markdown(phrase: Phrase) -> str:
    """A sentence as Markdown: words of the model as code, ours as text."""
    return "".join(code(piece) if isinstance(piece, Name) else _spaced(piece) for piece in phrase)


def _spaced(piece: str) -> str:
    """``prose`` keeps no space at the ends; here they stand between code spans."""
    inner = prose(piece)
    return (" " if piece[:1] == " " else "") + inner + (" " if piece[-1:] == " " and inner else "")


def mermaid(text: str, width: int = 40) -> str:
    """``text`` inside a quoted label of Mermaid: everything but letters, digits and a few signs as a character code."""
    return "".join(char if _harmless(char, at) else f"#{ord(char)};" for at, char in enumerate(units.clip(text, width)))


def _harmless(char: str, at: int) -> bool:
    return char.isascii() and (char.isalpha() or (at > 0 and (char.isdigit() or char in " .,+")))


def workflow_message(text: str) -> str:
    """The message of a workflow command, which ends at the end of its line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def workflow_property(text: str) -> str:
    """A property of a workflow command, which also ends at a comma or colon."""
    return workflow_message(text).replace(":", "%3A").replace(",", "%2C")
