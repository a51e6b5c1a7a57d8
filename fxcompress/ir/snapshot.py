"""Canonical text of a graph, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
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


def describe_module(module: nn.Module) -> str:
    """Class and plain settings of a module, sorted."""
    settings = {key: value for key, value in vars(module).items() if not key.startswith("_") and _is_plain(value)}
    return f"{type(module).__module__}.{type(module).__qualname__}{sorted(settings.items())}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


@dataclass
class Fingerprinter:
    """Hashes graphs with their tensors; remembers the hash of a tensor that has not changed.

    A remembered hash is used while the tensor's memory, version counter and checksums of its bits are the same (writes
    through ``.data`` leave the counter alone), so a large model costs a few milliseconds after the first time.
    """

    _known: dict[tuple[Any, ...], tuple[Tensor, str]] = field(default_factory=dict)

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
        key = (plain.data_ptr(), version, plain.numel(), plain.dtype, _checksum(words))
        if key not in self._known:
            self._known[key] = (plain, hashlib.sha256(bits.numpy().data).hexdigest())
        return self._known[key][1]


def _checksum(words: Tensor) -> bytes:
    """Sums of the columns of the words laid out in a rectangle, and what is left over; its width is prime, so moved words show."""
    whole = words[: words.numel() // _WIDTH * _WIDTH].view(-1, _WIDTH)
    rest = words[whole.numel() :]
    return b"".join(part.contiguous().numpy().tobytes() for part in (whole.sum(0), rest))


_WIDTH = 1021


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(module.named_parameters(remove_duplicate=False), key=lambda item: item[0])
    yield from sorted(module.named_buffers(remove_duplicate=False), key=lambda item: item[0])


def fingerprint(module: GraphModule) -> str:
    """sha256 over the graph's text and its tensors; the same in every process."""
    return Fingerprinter().of(module)
