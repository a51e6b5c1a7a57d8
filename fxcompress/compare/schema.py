"""What a snapshot of a graph holds: plain data without weights, from which two versions of a network are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch.fx import GraphModule

from fxcompress.ir.inputs import Inputs

SCHEMA_VERSION = 1

Json: TypeAlias = Any
"""None, bool, int, float, str, or lists and string-keyed dicts of them."""


@dataclass(frozen=True)
class Grid:
    """How a tensor is quantized: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int
    bits: int


@dataclass(frozen=True)
class Value:
    """One tensor that a node gives. ``dtype`` without "torch."; ``grid`` where it holds (or simulates) integers."""

    dtype: str
    shape: tuple[int, ...]
    grid: Grid | None = None


@dataclass(frozen=True)
class Sketch:
    """Numbers from which two tensors of one shape can be compared without either.

    ``norm``: L2, ``max_abs``: largest magnitude, ``count``: elements. ``buckets``: sums of the elements with fixed random signs, element
    i in bucket i mod their number. The expected squared length of the difference of two bucket vectors is the squared length of the
    difference of the tensors (Charikar, Chen, Farach-Colton 2002, "Finding frequent items in data streams").
    """

    norm: float
    max_abs: float
    count: int
    buckets: tuple[float, ...]


@dataclass(frozen=True)
class TensorRecord:
    """A parameter or buffer, once, under the first of its sorted names. ``digest``: 16 hex digits over dtype, shape and bits."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    sketch: Sketch
    is_parameter: bool = True


@dataclass(frozen=True)
class NodeRecord:
    """One node, in the order in which nodes run.

    Attributes:
        name: unique in its graph; only for people, nothing is matched by it.
        kind: the operation as reports name it: "conv", "relu", "conv+add+relu", "input", "output", "constant".
        target: what is called, the same in every process: class, function or method; "" for input, output and constant.
        path: of the module that is called, or of the tensor that a constant reads; "" otherwise. Only for people.
        inputs: places (in ``Snapshot.nodes``) of the nodes that are read, in the order of the operands, repeated when repeated.
        attributes: settings of the module and operands that are no nodes, by name. "$2" stands for ``inputs[2]``; a text that begins with
            "$" has one more.
        tensors: parameters and buffers by their name in the module ("weight"), as places in ``Snapshot.tensors``.
        outputs: the tensors that it gives, in the order of their pytree.
        macs: multiply-adds on the example inputs.
        source: "file:line" of the user's code.
        origins: names of the captured nodes that it computes, for nodes of one process.
        print: of its (concatenated, float64) output on the first seeded input; None where it was not run or gives no tensor.
    """

    name: str
    kind: str
    target: str
    path: str = ""
    inputs: tuple[int, ...] = ()
    attributes: dict[str, Json] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)
    outputs: tuple[Value, ...] = ()
    macs: int = 0
    source: str | None = None
    origins: tuple[str, ...] = ()
    print: Sketch | None = None


@dataclass(frozen=True)
class Port:
    """One tensor that goes into or comes out of forward. ``place``: its place in the structure: "[0]", "['boxes']", "[1].scores"."""

    name: str
    place: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contract:
    """What callers rely on. ``signature``: of forward, as Python writes it. ``structure``: of the output, as a text."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    signature: str = ""
    structure: str = ""


@dataclass(frozen=True)
class Cost:
    """On the example inputs. ``macs``: of the whole batch, ``weight_bytes``: of parameters and buffers, ``peak_bytes``: of activations."""

    params: int
    macs: int
    weight_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class OutputPrint:
    """One output on all seeded inputs, concatenated. ``sample``: some of its values, every ``step``-th; ``classes``: arg max along axis 1
    of a floating output (N, C), for top-1 agreement."""

    sketch: Sketch
    step: int
    sample: tuple[float, ...]
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """Outputs on inputs that anybody can make again: ``generator`` and ``seed`` say how, ``digest`` (16 hex digits) what came out."""

    generator: str
    seed: int
    digest: str
    count: int
    outputs: tuple[OutputPrint, ...]


@dataclass(frozen=True)
class Live:
    """The graph itself and its first seeded inputs; never written. What only weights can tell (which channels are gone, exact errors,
    latency) is known when both sides have it."""

    module: GraphModule
    inputs: Inputs


@dataclass(frozen=True)
class Snapshot:
    """A graph without its weights. ``model``: how the user names it; ``capture``: the step of the ladder; ``training``: its mode."""

    model: str
    nodes: tuple[NodeRecord, ...]
    tensors: tuple[TensorRecord, ...]
    contract: Contract
    cost: Cost
    numbers: Numbers | None = None
    capture: str = ""
    training: bool = False
    schema_version: int = SCHEMA_VERSION
    live: Live | None = field(default=None, compare=False, repr=False)
