"""Which operations give values of their inputs, or zero, and nothing else: they keep a tensor on its grid."""

from __future__ import annotations

from typing import Any

_ALWAYS = frozenset(
    (
        *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "relu"),
        *("flatten", "unflatten", "reshape", "view", "reshape_as", "view_as", "permute", "transpose", "swapaxes", "movedim", "squeeze"),
        *("unsqueeze", "expand", "expand_as", "repeat", "chunk", "split", "unbind", "cat", "concat", "stack", "narrow", "select"),
        *("index_select", "getitem", "flip", "roll", "contiguous", "clone", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
    )
)


def is_mover(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a call of the operation ``name`` (see ``onnx_trace.canonical_name``) is one of them."""
    if name in ("interpolate", "upsample"):
        return _argument(args, kwargs, 3, "mode", "nearest") == "nearest"
    if name == "pad":
        return _argument(args, kwargs, 2, "mode", "constant") != "constant" or not _argument(args, kwargs, 3, "value", None)
    return name in _ALWAYS


def _argument(args: Any, kwargs: Any, index: int, name: str, default: Any) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)
