"""Pieces of HTML pages: escaped texts, tables, and a document that needs no network and runs no foreign code.

The page's own style and script are allowed by their hashes in a content security policy, so even a text that slipped
through the escaping could not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from fxcompress.report import units
from fxcompress.report.rows import Row


def text(value: str) -> str:
    """Text from the model, in one line without control characters, with nothing left that is markup."""
    return html.escape(units.printable(value))


def asset(*names: str) -> str:
    """The files of this room, one after the other."""
    return "".join(files("fxcompress.report").joinpath(name).read_text(encoding="utf-8") for name in names)


def document(title: str, body: str, data: Any, *, style: str, script: str) -> str:
    """A whole page. ``title``: escaped here; ``body``: markup; ``data``: for the script, which finds it as JSON in #data."""
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)} - fxcompress</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{inert_json(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def inert_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def section(name: str, title: str, body: str) -> str:
    return f"<section id='{name}'><h2>{title}</h2>{body}</section>"


def tiles(cells: Sequence[tuple[str, str, str]]) -> str:
    """The few numbers that most readers came for: name, value, remark."""
    lines = (f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd class='small'>{text(note)}</dd></div>" for name, value, note in cells)
    return f"<dl class='tiles'>{''.join(lines)}</dl>"


def table(head: Row, body: Sequence[Row], label: str) -> str:
    top = "".join(f"<th scope='col'>{text(cell)}</th>" if cell else "<td></td>" for cell in head)
    lines = ("<th scope='row'>" + text(row[0]) + "</th>" + "".join(f"<td>{text(cell)}</td>" for cell in row[1:]) for row in body)
    inner = f"<thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody>"
    return f"<div class='scroll'><table aria-label='{text(label)}'>{inner}</table></div>"
