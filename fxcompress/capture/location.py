"""Lines of the user's code: in the running stack, in a traceback, of a class or a function."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
from types import FrameType, TracebackType
from typing import Any

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_STDLIB = os.path.dirname(os.__file__) + os.sep
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ROOT_FUNCTION = "run_user_forward"


def is_user_file(filename: str) -> bool:
    """Whether a frame of this file is not torch's, not Python's and not ours."""
    if filename.startswith((_TORCH, _OURS, "<")):
        return False
    return not filename.startswith(_STDLIB) or "site-packages" in filename


def user_stack(innermost: bool = False, limit: int = 4) -> str:
    """The innermost ``limit`` frames of user code that are running, as a traceback prints them.

    With ``innermost`` only ``file:line`` of the last one. Empty when no user code runs.
    """
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(frames) < limit:
        code = frame.f_code
        if code.co_name == _ROOT_FUNCTION and code.co_filename.startswith(_OURS):
            break
        if is_user_file(code.co_filename):
            if innermost:
                return f"{code.co_filename}:{frame.f_lineno}"
            frames.append(frame)
        frame = frame.f_back
    lines = []
    for used in reversed(frames):
        name, number = used.f_code.co_filename, used.f_lineno
        lines.append(f'  File "{name}", line {number}, in {used.f_code.co_name}\n    {linecache.getline(name, number).strip()}')
    return "\n".join(lines)


def where_raised(traceback: TracebackType | None) -> str | None:
    """``file:line`` of the innermost frame of user code in a traceback."""
    found = None
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if is_user_file(filename):
            found = f"{filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def where_defined(thing: Any) -> str | None:
    """``file:line`` where a function, or the class of an object, is defined."""
    thing = getattr(thing, "func", thing)
    target = thing if inspect.isfunction(thing) or inspect.ismethod(thing) or inspect.isclass(thing) else type(thing)
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return None
