"""Removing channels: scores, choice, plan, slicing and its proof. See :func:`fxcompress.prune` for the one call."""
