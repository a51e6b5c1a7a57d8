"""Rewriting by rules: pattern, check, rewrite."""

from fxcompress.rewrite.rules import Matched, Remark, Rule, Rules, Scope, apply, reads, remove_dead, single_reader

__all__ = ["Matched", "Remark", "Rule", "Rules", "Scope", "apply", "reads", "remove_dead", "single_reader"]
