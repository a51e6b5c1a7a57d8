"""Writes ``nn.MultiheadAttention`` out as nodes of the graph; the rule is :mod:`fxcompress.rewrite.attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule
from fxcompress.rewrite.attention import EXPAND_ATTENTION, Attention


@dataclass(frozen=True)
class ExpandAttention(RulePass):
    """Writes ``nn.MultiheadAttention`` out as nodes of the graph, so that its channels can be pruned."""

    name: ClassVar[str] = "expand-attention"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[Attention]:
        return EXPAND_ATTENTION
