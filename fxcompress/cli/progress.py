"""What is being done, on stderr, once it takes longer than two seconds; nothing where stderr is not a terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

DELAY = 2.0
_TICK = 0.25


class Progress:
    """``with Progress() as show: show("capture")``. The line disappears at the end."""

    def __init__(self) -> None:
        self._text = ""
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        if self._over.wait(DELAY):
            return
        width = shutil.get_terminal_size((80, 24)).columns
        # the size is given because tqdm shows nothing in a terminal that says it has 0 rows
        with tqdm(file=sys.stderr, leave=False, ncols=width, nrows=24, delay=_TICK, bar_format="{elapsed} {desc}") as bar:
            bar.start_t -= time.monotonic() - self._began
            while not self._over.wait(_TICK):
                bar.set_description_str(self._text)
