"""What is known of one compression: plain data, from which every form of the report is made."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.errors import InputError
from fxcompress.report import codec, html, markdown, text


@dataclass(frozen=True)
class Measured:
    """What a model costs on the example inputs.

    ``macs``: multiply-adds of the whole batch. ``peak_bytes``: activations alive at once. ``latency_ms``: median of one
    call, ``latency_spread_ms``: interquartile range; None when nothing was measured.
    """

    params: int
    macs: int
    weight_bytes: int
    peak_bytes: int
    latency_ms: float | None = None
    latency_spread_ms: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """How far the new outputs are from the old ones.

    ``max_abs``: largest absolute difference. ``relative``: the same over the largest value. ``sqnr_db``:
    10 log10(signal power / error power); inf when the outputs are equal. ``relative64``: as ``relative``, with the same
    rewrites in float64, and of a pruned network from the masked one (None when that could not be checked). ``note``: what
    was checked, and how.
    """

    max_abs: float
    relative: float
    sqnr_db: float
    relative64: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PassLine:
    """What one pass did. ``error``: relative difference of the outputs to the step before; None when not compared."""

    text: str
    changed: bool
    seconds: float
    rewrites: int
    error: float | None = None


@dataclass(frozen=True)
class MissedLine:
    """A rewrite that was looked at and refused: at which node, why, and at which line of the user's code."""

    node: str
    why: str
    source: str | None = None


@dataclass(frozen=True)
class PrunedLine:
    """Channels that were removed or kept together: how many there were and are, the layers that make and that read them.

    ``name``: of the layer that makes them. ``why``: what kept more of them than asked for.
    """

    name: str
    channels: int
    kept: int
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class ChangedLine:
    """A statistic over channels (layer norm, softmax) that runs over fewer of them: there the function itself changed."""

    node: str
    axis: int
    source: str | None = None


@dataclass(frozen=True)
class QuantLine:
    """What became of one node: ``form`` is "int8", "float", or how its weights are stored ("weights in float16"), and ``why``.

    ``sqnr_db``: of its output in the quantized network against the float one, with all errors that arrive there; None where it
    was not compared.
    """

    node: str
    form: str
    why: str
    source: str | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class RankLine:
    """What quantizing one layer alone costs: ``cost`` in the unit of ``Quantized.budget``; whether it therefore stays in float."""

    node: str
    cost: float
    in_float: bool


@dataclass(frozen=True)
class Quantized:
    """What quantization did.

    ``kept``: whether the result is the quantized form; ``verdict`` says why it is, or is not. ``quantizes``, ``dequantizes``: the
    boundaries between float and integers. ``sqnr_db``: of the outputs on the example inputs. ``float_bytes``, ``int8_bytes``: of the
    weights. ``float_ms``, ``int8_ms``: of the fastest float and the fastest quantized form. ``batches``: of calibration data.
    ``budget``: what the numbers had to hold, and whether they do; ``ranking``: the layers by what they cost, the worst first.
    """

    kept: bool
    verdict: str
    options: str = ""
    batches: int = 0
    quantizes: int = 0
    dequantizes: int = 0
    sqnr_db: float | None = None
    float_bytes: int = 0
    int8_bytes: int = 0
    float_ms: float | None = None
    int8_ms: float | None = None
    budget: str = ""
    lines: tuple[QuantLine, ...] = ()
    ranking: tuple[RankLine, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One target in the race. ``latency_ms`` is None when it did not run; ``note`` says why."""

    target: str
    latency_ms: float | None
    kept: bool
    note: str = ""
    latency_spread_ms: float | None = None


@dataclass(frozen=True)
class NodeView:
    """One node of a graph as it is drawn.

    ``id`` is unique in its graph and is what ``inputs`` name. ``kind``: the operation ("conv", "relu"; "conv+add+relu"
    for a conv that carries a residual and an activation).
    ``detail``: settings of the module. ``shape``: of the value, e.g. "1x64x56x56". ``from_``: the captured nodes that
    this one computes. ``source``: file:line of the user's code.
    """

    id: str
    name: str
    kind: str
    detail: str = ""
    shape: str = ""
    inputs: tuple[str, ...] = ()
    from_: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True)
class GraphView:
    """A graph as it is drawn; the nodes in the order in which they run."""

    nodes: tuple[NodeView, ...] = ()


@dataclass(frozen=True)
class GraphPair:
    """One captured part of a model ("" is the whole), before and after."""

    part: str
    before: GraphView
    after: GraphView


@dataclass(frozen=True)
class Environment:
    """Where the numbers were measured."""

    device: str = "cpu"
    cpu: str = ""
    threads: int = 0
    torch: str = ""
    fxcompress: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that is known of one call of ``compress``, ``quantize`` or ``prune``.

    ``model``: how the user names it. ``capture``: which step of the ladder took it, ``capture_notes``: what had to be
    assumed. ``target``: what the kept form runs on. ``pruned``: the groups of channels, ``changed``: the statistics that
    run over fewer of them. ``quantized``: what quantization did, None where none was asked for. ``seconds``: of the whole call.
    """

    model: str
    title: str
    capture: str
    before: Measured
    after: Measured
    capture_notes: tuple[str, ...] = ()
    target: str = ""
    inputs: str = ""
    environment: Environment = Environment()
    accuracy: Accuracy | None = None
    passes: tuple[PassLine, ...] = ()
    missed: tuple[MissedLine, ...] = ()
    race: tuple[Candidate, ...] = ()
    pruned: tuple[PrunedLine, ...] = ()
    changed: tuple[ChangedLine, ...] = ()
    quantized: Quantized | None = None
    seconds: float = 0.0
    graphs: tuple[GraphPair, ...] = ()

    def to_text(self, width: int = 96) -> str:
        """Plain text for a terminal, no line longer than ``width``."""
        return text.render(self, width)

    def to_markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        return markdown.render(self)

    def to_json(self) -> str:
        """JSON with a schema version; :meth:`from_json` reads it back to an equal report."""
        return codec.encode(self)

    def to_html(self) -> str:
        """One self-contained page with the graphs drawn."""
        return html.page(self)

    @classmethod
    def from_json(cls, document: str) -> Report:
        """Read what :meth:`to_json` has written.

        Raises:
            ArchiveError: it is damaged, no report, or of a newer version.
        """
        return codec.decode(document, cls)

    def render(self, suffix: str) -> str:
        """The form that a file name's suffix (``txt``, ``md``, ``json`` or ``html``) asks for.

        Raises:
            InputError: another suffix.
        """
        forms = {"txt": self.to_text, "md": self.to_markdown, "json": self.to_json, "html": self.to_html}
        form = forms.get(suffix.lower().lstrip("."))
        if form is None:
            raise InputError(f"there is no report in the form '{suffix}'", hint=f"the forms are {', '.join(forms)}")
        return form()

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return html.fragment(self)
