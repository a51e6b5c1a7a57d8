"""Channels: which ones must be kept or removed together."""

from fxcompress.analysis.channels.graph import PINNED, ChannelDependencyGraph, ChannelGroup, Mask, Pinned, Slot
from fxcompress.analysis.channels.run import Read

__all__ = ["PINNED", "ChannelDependencyGraph", "ChannelGroup", "Mask", "Pinned", "Read", "Slot"]
