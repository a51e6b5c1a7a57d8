"""Canonical text of a graph, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.ir.activation import Activation

_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.memory_format, Activation)


def snapshot(module: GraphModule) -> str:
    """One line per node: name, operation, target, operands and a module's settings. Weights are not in it."""
    return "\n".join(_line(module, node) for node in module.graph.nodes)


def _line(module: GraphModule, node: Node) -> str:
    text = f"{node.name} = {node.op} {target_name(node)} {node.args} {dict(sorted(node.kwargs.items()))}"
    if node.op == "call_module":
        text += " " + describe_module(module.get_submodule(str(node.target)))
    return text


def target_name(node: Node) -> str:
    """A node's target as text that is the same in every process."""
    if isinstance(node.target, str):
        return node.target
    name = getattr(node.target, "__qualname__", None) or getattr(node.target, "__name__", None) or str(node.target)
    return f"{getattr(node.target, '__module__', '')}.{name}"


def describe_module(module: nn.Module, ignoring: frozenset[str] = frozenset()) -> str:
    """Class and plain settings of a module, sorted, but for those ``ignoring``."""
    return f"{class_name(module)}{sorted((key, value) for key, value in settings(module).items() if key not in ignoring)}"


def class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def settings(module: nn.Module) -> dict[str, Any]:
    """The public attributes of a module that are plain values: numbers, texts, dtypes and tuples and lists of them."""
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):  # such as the scale and zero point of a quantized tensor
        return all(_is_plain(getattr(value, f.name)) for f in fields(value))
    return isinstance(value, _PLAIN)


@dataclass
class Fingerprinter:
    """Hashes graphs with their tensors; remembers the hash of a tensor that has not changed.

    A remembered hash is used while the tensor's memory, version counter and checksums of a sample of its bits are the
    same (writes through ``.data`` leave the counter alone), so a large model costs a few milliseconds after the first
    time. :meth:`written` looks at all bits.
    """

    _known: dict[tuple[Any, ...], tuple[Tensor, str, bytes]] = field(default_factory=dict)

    def of(self, module: GraphModule) -> str:
        digest = hashlib.sha256(snapshot(module).encode())
        for name, tensor in _tensors(module):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
            digest.update(self._hash(tensor).encode())
        return digest.hexdigest()

    def _hash(self, tensor: Tensor) -> str:
        if tensor.device.type == "meta":
            return "meta"
        plain = tensor.detach()
        if plain.device.type != "cpu" or not plain.is_contiguous():
            plain = plain.cpu().contiguous()
        bits = plain.reshape(-1).view(torch.uint8)
        words = bits[: bits.numel() // 8 * 8].view(torch.int64) if plain.storage_offset() % 8 == 0 else bits
        version = 0 if tensor.is_inference() else tensor._version
        key = (plain.data_ptr(), version, plain.numel(), plain.dtype, _checksum(words, _SAMPLE))
        if key not in self._known:
            self._known[key] = (words, hashlib.sha256(bits.numpy().data).hexdigest(), _checksum(words))
        return self._known[key][1]

    def written(self) -> bool:
        """Whether somebody has written into a tensor since it was first seen."""
        return any(_checksum(words) != before for words, _, before in self._known.values())


def _checksum(words: Tensor, rows: int | None = None) -> bytes:
    """Sums of the columns of the words laid out in a rectangle, and what is left over; its width is prime, so moved words
    show. ``rows``: about how many rows to look at, evenly spread."""
    whole = words[: words.numel() // _WIDTH * _WIDTH].view(-1, _WIDTH)
    rest = words[whole.numel() :]
    looked_at = whole if rows is None else whole[:: max(1, len(whole) // rows)]
    return b"".join(part.contiguous().numpy().tobytes() for part in (looked_at.sum(0), rest))


_WIDTH = 1021
_SAMPLE = 64  # rows; tensors below half a megabyte are looked at as a whole


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(module.named_parameters(remove_duplicate=False), key=lambda item: item[0])
    yield from sorted(module.named_buffers(remove_duplicate=False), key=lambda item: item[0])


def fingerprint(module: GraphModule) -> str:
    """sha256 over the graph's text and its tensors; the same in every process."""
    return Fingerprinter().of(module)


@dataclass(frozen=True)
class Structure:
    """What a graph is but for the values of its weights, the names of its nodes, and whether it is in training mode.

    Attributes:
        nodes: "what it calls: digest of that, of its operands and of its module's settings", in order.
        tensors: "name: dtype[shape]" of every parameter and buffer, sorted; "name: = other" for one that is tied.
    """

    nodes: tuple[str, ...]
    tensors: tuple[str, ...]

    @classmethod
    def of(cls, module: GraphModule) -> Structure:
        places: dict[Node, Any] = {}
        lines = []
        for node in module.graph.nodes:
            line = _nameless(module, node, places)
            called = node.target if isinstance(node.target, str) else target_name(node).rpartition(".")[2]
            lines.append(f"{called}: {hashlib.sha256(line.encode()).hexdigest()[:12]}")
            places[node] = _Place(len(places))
        return cls(tuple(lines), described_tensors(module))

    @property
    def fingerprint(self) -> str:
        """sha256; the same in every process."""
        return hashlib.sha256("\n".join((*self.nodes, "", *self.tensors)).encode()).hexdigest()

    def difference(self, other: Structure) -> str | None:
        """The first parameter or node of ``other`` that is not as here, in words; None when the structures are equal."""
        found = different_tensor(self.tensors, other.tensors)
        if found is not None or self.nodes == other.nodes:
            return found
        ours, theirs = self.nodes, other.nodes
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        names = [nodes[place].rpartition(": ")[0] if place < len(nodes) else "nothing" for nodes in (ours, theirs)]
        if names[0] == names[1]:
            return f"node {place}, {names[0]}, has other operands or settings"
        return f"node {place} is {names[1]} instead of {names[0]}"


class _Place:
    """Stands for a node in a text by its place in the graph."""

    def __init__(self, place: int) -> None:
        self.place = place

    def __repr__(self) -> str:
        return f"%{self.place}"


def _nameless(module: GraphModule, node: Node, places: dict[Node, Any]) -> str:
    args, kwargs = torch.fx.node.map_arg((node.args, dict(sorted(node.kwargs.items()))), places.__getitem__)
    text = f"{node.op} {target_name(node)} {args} {dict(kwargs)}"
    if node.op == "call_module":
        text += " " + describe_module(module.get_submodule(str(node.target)), frozenset({"training"}))
    return text


def described_tensors(module: nn.Module) -> tuple[str, ...]:
    """The name, dtype and shape of every parameter and buffer, as in :class:`Structure`."""
    first: dict[int, str] = {}
    lines = []
    for name, tensor in _tensors(module):
        owner = first.setdefault(id(tensor), name)
        text = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" if owner == name else f"= {owner}"
        lines.append(f"{name}: {text}")
    return tuple(sorted(lines))


def different_tensor(expected: Iterable[str], found: Iterable[str]) -> str | None:
    """The first parameter or buffer that is not the same in both, in words; the texts are those of :class:`Structure`."""
    ours, theirs = (dict(line.rpartition(": ")[::2] for line in lines) for lines in (expected, found))
    for name, text in ours.items():
        if name not in theirs:
            return f"the parameter or buffer '{name}' is missing"
        if theirs[name] != text:
            return f"the parameter or buffer '{name}' is {theirs[name]} instead of {text}"
    extra = next((name for name in theirs if name not in ours), None)
    return None if extra is None else f"the parameter or buffer '{extra}' is new"
