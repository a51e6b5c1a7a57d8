"""Rewrite rules: pattern, check, rewrite. Rules are data and compose with ``+``; a refusal is a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch.fx import GraphModule, Node

from fxcompress.analysis import Aliases, Analyses, Shapes
from fxcompress.ir.edit import Editor, provenance
from fxcompress.ir.effects import effect_of
from fxcompress.ir.verify import source_line


@dataclass(frozen=True)
class Remark:
    """One thing that a pass did, or did not do and why. ``node`` names nodes of the captured graph."""

    applied: bool
    node: str
    why: str
    source: str | None = None

    @classmethod
    def on(cls, node: Node, why: str, *, applied: bool) -> Remark:
        return cls(applied, "+".join(provenance(node)), why, source_line(node))

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        return f"{'applied' if self.applied else 'missed'}: {self.node}: {self.why}{where}"


class Matched(Protocol):
    """What a pattern finds: ``nodes`` are all nodes whose values the rewrite relies on or removes."""

    @property
    def nodes(self) -> tuple[Node, ...]: ...


@dataclass(frozen=True)
class Scope:
    """What a rule may look at and edit."""

    editor: Editor
    analyses: Analyses

    @property
    def shapes(self) -> Shapes:
        return self.analyses.get(Shapes)


M = TypeVar("M", bound=Matched)


@dataclass(frozen=True)
class Rule(Generic[M]):
    """``pattern`` reads a node: a match or None. ``check`` gives the reason why a match must not be rewritten, or None.
    ``rewrite`` edits the graph and says what it did. A pattern is silent; a check is reported to the user."""

    name: str
    pattern: Callable[[Node, Scope], M | None]
    rewrite: Callable[[M, Scope], str]
    check: Callable[[M, Scope], str | None] = lambda match, scope: None

    def __add__(self, other: Rule[Any] | Rules) -> Rules:
        return Rules((self,)) + other


@dataclass(frozen=True)
class Rules:
    """Rules tried in order at every node."""

    rules: tuple[Rule[Any], ...]

    def __add__(self, other: Rule[Any] | Rules) -> Rules:
        return Rules((*self.rules, *(other.rules if isinstance(other, Rules) else (other,))))

    def __iter__(self) -> Iterator[Rule[Any]]:
        return iter(self.rules)


ROUNDS = 64  # more than any chain of rewrites that feed each other; a rule that never ends is a fault


def apply(rules: Rules | Rule[Any], module: GraphModule, analyses: Analyses) -> tuple[bool, tuple[Remark, ...]]:
    """Rewrite ``module`` in place until no rule matches; gives whether anything changed, and remarks.

    A node whose memory is written in place by somebody is left alone by every rule.
    """
    rules = rules if isinstance(rules, Rules) else Rules((rules,))
    scope = Scope(Editor(module), analyses)
    applied: list[Remark] = []
    for _ in range(ROUNDS):
        done, missed = _round(rules, scope)
        applied += done
        if not done:
            break
        remove_dead(scope.editor)
    if applied:
        scope.editor.finish()
    return bool(applied), (*applied, *missed)


def _round(rules: Rules, scope: Scope) -> tuple[list[Remark], list[Remark]]:
    done: list[Remark] = []
    missed: dict[tuple[str, str], Remark] = {}
    aliases = Aliases(scope.editor.module, scope.analyses.inputs, scope.analyses)
    for node in list(scope.editor.graph.nodes):
        if node._erased:
            continue
        for rule in rules:
            match = rule.pattern(node, scope)
            if match is None:
                continue
            written = next((n for n in match.nodes if aliases.is_written(n)), None)
            reason = f"'{written.name}' is written in place" if written is not None else rule.check(match, scope)
            if reason is not None:
                remark = Remark.on(node, f"{rule.name}: {reason}", applied=False)
                missed[(remark.node, remark.why)] = remark
                continue
            remark = Remark.on(node, rule.name, applied=True)
            what = rule.rewrite(match, scope)
            done.append(Remark(True, remark.node, f"{rule.name}: {what}", remark.source))
            break
    return done, list(missed.values())


def remove_dead(editor: Editor) -> int:
    """Erase nodes that nobody reads and that do nothing else; returns how many."""
    dead = 0
    for node in reversed(list(editor.graph.nodes)):
        if not node.users and node.op in ("call_module", "call_function", "call_method", "get_attr") and effect_of(node) is None:
            editor.erase(node)
            dead += 1
    return dead


def single_reader(node: Node, reader: Node) -> bool:
    """Whether ``reader`` is the only one who reads ``node``."""
    return list(node.users) == [reader]


def reads(nodes: Iterable[Node]) -> str:
    """Names of readers, for a refusal."""
    names = [node.name for node in nodes]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
