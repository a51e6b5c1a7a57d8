"""A graph as SVG. The page's script adds what moves; the drawing is complete without it."""

from __future__ import annotations

from html import escape

from fxcompress.report import units
from fxcompress.report.layout import BOX_HEIGHT, BOX_WIDTH, Point, Wire, layout
from fxcompress.report.model import GraphView, NodeView
from fxcompress.report.rows import shorten

FAMILIES: dict[str, str] = {
    "layer": "conv conv_transpose linear embedding recurrent matmul bmm mm addmm baddbmm einsum stored_conv stored_linear",
    "norm": "batch_norm layer_norm rms_norm group_norm instance_norm local_response_norm normalize",
    "attention": "attention multihead_attention softmax log_softmax",
    "activation": "relu relu6 hardtanh hardswish hardsigmoid silu mish elu celu selu leaky_relu gelu sigmoid tanh softplus "
    "log_sigmoid prelu glu clamp dropout stochastic_depth",
    "arithmetic": "add sub mul div pow neg exp sqrt rsqrt square maximum minimum where sum mean",
    "pool": "max_pool avg_pool adaptive_avg_pool adaptive_max_pool interpolate",
    "edge": "input output constant",
}
"""Families of operations, each drawn in one colour; all others move data or are not known."""

_FAMILY_OF = {kind: family for family, kinds in FAMILIES.items() for kind in kinds.split()}
_LINE_CHARS = 25


def svg(graph: GraphView, label: str, prefix: str) -> str:
    """The drawing of ``graph``; the box of node i has the id ``prefix-i``."""
    drawing = layout(graph)
    number = {node.id: place for place, node in enumerate(graph.nodes)}
    wires = "".join(_wire(wire, number) for wire in drawing.wires)
    boxes = "".join(_box(node, place, drawing.places[node.id], prefix) for place, node in enumerate(graph.nodes))
    size = f'width="{drawing.width:g}" height="{drawing.height:g}" viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    return f'<svg {size} role="group" aria-label="{escape(label)}"><g class="wires">{wires}</g><g class="boxes">{boxes}</g></svg>'


def _wire(wire: Wire, number: dict[str, int]) -> str:
    return f'<path data-s="{number[wire.source]}" data-t="{number[wire.target]}" d="{_path(wire.points)}"/>'


def _path(points: tuple[Point, ...]) -> str:
    """Straight down where the points stand below each other, an S between the others."""
    (x, y), half = points[0], BOX_HEIGHT / 2
    y += half
    text = f"M{x:g} {y:g}"
    for place, (next_x, next_y) in enumerate(points[1:], start=2):
        end = next_y - half if place == len(points) else next_y
        if abs(next_x - x) < 0.6:
            text += f"V{end:g}"
            next_x = x
        else:
            top, bottom = max(y, next_y - half - 22), next_y - half
            middle = (top + bottom) / 2
            text += f"V{top:g}C{x:g} {middle:g} {next_x:g} {middle:g} {next_x:g} {bottom:g}" + (f"V{end:g}" if end != bottom else "")
        x, y = next_x, end
    return text


def _box(node: NodeView, place: int, at: Point, prefix: str) -> str:
    x, y = at[0] - BOX_WIDTH / 2, at[1] - BOX_HEIGHT / 2
    name = units.printable(node.name)
    label = escape(units.printable(f"{node.kind} {name} {node.shape}"))
    kind = units.clip(node.kind.replace("_", " "), 21)
    second = units.clip(node.shape, 22 if len(node.from_) > 1 else 30) if node.shape else ""
    fused = len(node.from_) > 1
    first = escape(shorten(name, max(6, _LINE_CHARS - len(kind))))
    return (
        f'<g class="box {family(node.kind)}{" fused" if fused else ""}" id="{prefix}-{place}" transform="translate({x:g} {y:g})" '
        f'tabindex="-1" role="button" aria-label="{label}"><rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<rect class="stripe" width="5" height="{BOX_HEIGHT}" rx="2.5"/>'
        f'<text x="13" y="17"><tspan class="kind">{escape(kind)}</tspan> {first}</text>'
        f'<text class="shape" x="13" y="32">{escape(second)}</text>'
        + (f'<text class="count" x="{BOX_WIDTH - 8}" y="32">{len(node.from_)} in 1</text>' if fused else "")
        + "</g>"
    )


def family(kind: str) -> str:
    """The family of an operation; "other" for what only moves data and what is not known."""
    return _FAMILY_OF.get(kind.split("+")[0], "other")
