"""Saved models: one safetensors file with the graph as JSON in its metadata. See :func:`save` and :func:`load`."""

from fxcompress.storage.archive import load, read_extra, save
from fxcompress.storage.record import Record

__all__ = ["Record", "load", "read_extra", "save"]
