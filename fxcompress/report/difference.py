"""What differs between two versions of a network: plain data, from which every form of the report is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fxcompress.errors import InputError
from fxcompress.report import diff_github, diff_inverse, diff_json, diff_junit, diff_markdown, diff_text
from fxcompress.report.model import NodeView

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Place:
    """A node as a reader finds it. ``source``: "file:line" of the user's code. ``index``: its place in its graph, -1 where unknown."""

    name: str
    kind: str
    path: str = ""
    source: str | None = None
    index: int = -1


@dataclass(frozen=True)
class Channels:
    """Which places along dimension ``dim`` of a tensor are gone (places in base) and which are new (places in head)."""

    dim: int
    removed: tuple[int, ...] = ()
    added: tuple[int, ...] = ()


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was at a node.

    ``what``: "target", "attribute", "tensor", "dtype", "shape", "quantization" or "mode". ``name``: of the attribute or tensor, or which
    output. ``base``, ``head``: what it was and is, as plain JSON values (a tensor: its dtype, shape and digest; a quantization: its scale,
    zero_point and bits); None where it is missing. ``amount``: L2 norm of the difference of a tensor or of a scale over the larger of both
    norms, None where it has none; ``estimated``: from sketches. ``channels``: of a tensor, where they could be told. ``note``: in words:
    "channels 3, 7 and 12 removed", "estimated", "an int8 value became float32".
    """

    what: str
    name: str
    base: Any = None
    head: Any = None
    amount: float | None = None
    note: str = ""
    estimated: bool = False
    channels: tuple[Channels, ...] = ()


@dataclass(frozen=True)
class NodeChange:
    """A node of both versions that is not the same. ``confidence``: of the match, 0 to 1."""

    base: Place
    head: Place
    confidence: float
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Rewired:
    """A node of both versions whose operand ``operand`` (place among its inputs) comes from another node, though neither was added or
    removed between them. ``was``, ``now``: None where there is no such operand."""

    base: Place
    head: Place
    operand: int
    was: Place | None
    now: Place | None


@dataclass(frozen=True)
class Moved:
    """The same operation with the same tensors at another place of the graph. ``after_base``, ``after_head``: what it reads there."""

    base: Place
    head: Place
    after_base: tuple[Place, ...]
    after_head: tuple[Place, ...]


@dataclass(frozen=True)
class Group:
    """Nodes that became other nodes together: ``kind`` is "conv + bn + relu -> conv+relu". ``changes``: of the nodes that stand for
    them."""

    base: tuple[Place, ...]
    head: tuple[Place, ...]
    kind: str
    confidence: float
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class ContractChange:
    """Something that callers rely on. ``where``: "input", "output", "signature" or "model"; ``what``: "name", "shape", "dtype",
    "structure", "count", or "mode" (of the model: train or eval). ``name``: in base, ``head_name``: where it has another in head."""

    where: str
    what: str
    name: str
    base: Any
    head: Any
    head_name: str = ""


@dataclass(frozen=True)
class CostChange:
    """``name``: "params", "macs", "weight_bytes" or "peak_bytes"."""

    name: str
    base: int
    head: int


@dataclass(frozen=True)
class OutputNumbers:
    """One output of head against base on the same seeded inputs.

    ``sqnr_db``: 10 log10(signal power of base / error power), None when equal; ``sqnr_head_db``: the same with head as the signal.
    ``cosine``: of both as vectors. ``top1``: share of equal classes, None where there are no classes. ``estimated``: from sketches, not
    from the values themselves."""

    name: str
    max_abs: float
    sqnr_db: float | None
    cosine: float
    top1: float | None
    estimated: bool
    sqnr_head_db: float | None = None


@dataclass(frozen=True)
class NodeNumbers:
    """``sqnr_db`` of the output of a matched node, with all errors that arrive there; the signal is the mean of both sides' in dB.

    ``base_index``, ``head_index``: places in the graphs.
    """

    base: str
    head: str
    sqnr_db: float
    base_index: int = -1
    head_index: int = -1


@dataclass(frozen=True)
class LatencyChange:
    """Medians of interleaved calls. ``verdict``: "faster", "slower", or "~" when the difference is not significant (``p_value``)."""

    base_ms: float
    head_ms: float
    p_value: float
    verdict: str


@dataclass(frozen=True)
class NumbersChange:
    """``outputs``: that are not equal. ``nodes``: SQNR along the graph, in its order, where it is not exact. ``first_drop``: the first
    node where quality drops, in head (``first_drop_base``: the same one in base). ``note``: why nothing could be compared."""

    outputs: tuple[OutputNumbers, ...] = ()
    nodes: tuple[NodeNumbers, ...] = ()
    first_drop: Place | None = None
    latency: LatencyChange | None = None
    note: str = ""
    first_drop_base: Place | None = None


@dataclass(frozen=True)
class Gate:
    """One budget of ``fxcompress check``. ``limit``, ``measured``: as texts with units; ``message``: of the user, for when it is
    violated."""

    name: str
    holds: bool
    limit: str
    measured: str
    message: str = ""


@dataclass(frozen=True)
class SideNode(NodeView):
    """A node as the page draws it: with its multiply-adds and the bytes of its weights; ``path``: for folding repeated blocks."""

    path: str = ""
    macs: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Match:
    """Two nodes (names) that are one and the same; ``confidence`` 0 to 1, ``how``: what it rests on."""

    base: str
    head: str
    confidence: float
    how: str


@dataclass(frozen=True)
class Sides:
    """Both graphs, for drawing; not in the JSON form."""

    base: tuple[SideNode, ...]
    head: tuple[SideNode, ...]
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Difference:
    """Everything that differs between BASE and HEAD; all empty when they are one function under other names.

    ``matched``, ``base_nodes``, ``head_nodes``: how many nodes there are, and how many found their partner.
    """

    base: str
    head: str
    base_nodes: int
    head_nodes: int
    matched: int
    added: tuple[Place, ...] = ()
    removed: tuple[Place, ...] = ()
    changed: tuple[NodeChange, ...] = ()
    rewired: tuple[Rewired, ...] = ()
    moved: tuple[Moved, ...] = ()
    groups: tuple[Group, ...] = ()
    contract: tuple[ContractChange, ...] = ()
    cost: tuple[CostChange, ...] = ()
    numbers: NumbersChange = NumbersChange()
    gates: tuple[Gate, ...] = ()
    schema_version: int = SCHEMA_VERSION
    sides: Sides | None = None

    @property
    def same_function(self) -> bool:
        """Nothing of the graphs differs: only names, provenance and costs of latency may."""
        return not (self.added or self.removed or self.changed or self.rewired or self.moved or self.groups or self.contract)

    def inverse(self) -> Difference:
        """What leads from head back to base, without the gates, which are asked of head."""
        return diff_inverse.inverse(self)

    def to_json(self) -> str:
        """JSON as ``difference.schema.json`` describes it; :meth:`from_json` reads it back, without the drawings (``sides``)."""
        return diff_json.encode(self)

    @classmethod
    def from_json(cls, document: str) -> Difference:
        """Read what :meth:`to_json` has written.

        Raises:
            ArchiveError: it is damaged, no difference, or of a newer version.
        """
        return diff_json.decode(document, cls)

    def to_text(self, width: int = 96) -> str:
        """Plain text for a terminal: at most 40 lines, none longer than ``width`` (no less than 40), the worst first."""
        return diff_text.render(self, width)

    def to_markdown(self, limit: int = diff_markdown.COMMENT_LIMIT) -> str:
        """GitHub-flavoured Markdown of at most ``limit`` bytes, in which nothing from the model is markup."""
        return diff_markdown.render(self, limit)

    def to_html(self) -> str:
        """One self-contained page with both graphs beside each other."""
        from fxcompress.report import diff_html  # which needs the dataclasses of this module

        return diff_html.page(self)

    def to_github(self, root: Path | None = None) -> str:
        """At most ten workflow commands (``::error file=...``) at the user's source lines, which are relative to ``root``.

        None looks for the root of the repository above the working directory.
        """
        return diff_github.render(self, root)

    def to_junit(self) -> str:
        """JUnit XML: the gates as test cases."""
        return diff_junit.render([self])

    def render(self, form: str) -> str:
        """The form that a name (``text``, ``md``, ``json``, ``junit``, ``html``, ``github``) or a file's suffix asks for.

        Raises:
            InputError: another name.
        """
        forms: dict[str, Callable[[], str]] = {"text": self.to_text, "md": self.to_markdown, "json": self.to_json, "junit": self.to_junit}
        forms |= {"html": self.to_html, "github": self.to_github, "txt": self.to_text, "xml": self.to_junit}
        made = forms.get(form.lower().lstrip("."))
        if made is None:
            raise InputError(f"there is no difference in the form '{form}'", hint=f"the forms are {', '.join(forms)}")
        return made()

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.to_text())}</pre>"
