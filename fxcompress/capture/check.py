"""Does the captured graph compute what the model computes, also for other sizes?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.ir.inputs import Inputs

# relative to the largest value of the output; the graphs run the same kernels, so this only allows another order of sums
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def difference(expected: Any, graph: nn.Module, inputs: Inputs) -> str | None:
    """How the output of ``graph`` on ``inputs`` differs from ``expected``, in words; None when it does not."""
    try:
        actual = run(graph, inputs)
    except Exception as error:  # any failure of the graph alone is the answer to the question
        return f"the graph fails where the model runs ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return compare(expected, actual)


def run(module: nn.Module, inputs: Inputs) -> Any:
    """One call without gradients; inputs, buffers and random state are left as they were, so runs can be compared."""
    # the forward of a graph module itself: its __call__ prints a traceback before it raises
    call = module.forward if isinstance(module, fx.GraphModule) else module
    with torch.no_grad(), kept_state(module, inputs):
        torch.manual_seed(0)
        return inputs.clone().call(call)


@contextmanager
def kept_state(module: nn.Module, inputs: Inputs) -> Iterator[None]:
    """The random state, and what a run writes into the module (statistics, caches), are put back afterwards."""
    devices = sorted({t.device.index for t in inputs.tensors() if t.device.type == "cuda" and t.device.index is not None})
    buffers = [(b, b.clone()) for b in module.buffers() if not b.is_meta]
    attributes = [_Attributes.of(m) for m in module.modules()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for kept in attributes:
                kept.put_back()
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@dataclasses.dataclass(frozen=True)
class _Attributes:
    """The attributes of one module, and the contents of its dicts, lists and sets (where models keep caches)."""

    module: nn.Module
    values: dict[str, Any]
    contents: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, module: nn.Module) -> _Attributes:
        values = dict(module.__dict__)
        containers = [v for v in values.values() if isinstance(v, (dict, list, set))]
        return cls(module, values, tuple((v, v.copy() if v else None) for v in containers))

    def put_back(self) -> None:
        self.module.__dict__.clear()
        self.module.__dict__.update(self.values)
        for container, before in self.contents:
            if before is None:  # it was empty, as most tables of a module are
                container.clear()
            elif container != before if isinstance(container, set) else not _same_items(container, before):
                container.clear()
                container.extend(before) if isinstance(container, list) else container.update(before)


def _same_items(now: Any, before: Any) -> bool:
    """Whether two dicts or lists hold the same objects (tensors cannot be compared with ``==``)."""
    if len(now) != len(before):
        return False
    if isinstance(now, list):
        return all(a is b for a, b in zip(now, before, strict=True))
    return all(a == b and now[a] is before[b] for a, b in zip(now, before, strict=True))


def compare(expected: Any, actual: Any) -> str | None:
    """The first difference between two nested outputs, in words."""
    left, right = list(leaves(expected)), list(leaves(actual))
    if [path for path, _ in left] != [path for path, _ in right]:
        return f"the output has the entries {[p for p, _ in right][:6]} instead of {[p for p, _ in left][:6]}"
    for (path, a), (_, b) in zip(left, right, strict=True):
        name = f"output{path}"
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return f"{name} is a {type(b).__name__} instead of a {type(a).__name__}"
        found = _tensors_differ(a, b) if isinstance(a, Tensor) else (None if a == b else f"is {b!r} instead of {a!r}")
        if found:
            return f"{name} {found}"
    return None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a nested output; dataclasses and mappings by their keys, absent (None) entries left out."""
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def _tensors_differ(a: Tensor, b: Tensor) -> str | None:
    if a.shape != b.shape:
        return f"has the shape {tuple(b.shape)} instead of {tuple(a.shape)}"
    if a.dtype != b.dtype or a.device != b.device:
        return f"is {b.dtype} on {b.device} instead of {a.dtype} on {a.device}"
    if a.numel() == 0 or a.is_meta or torch.equal(a, b):
        return None
    if not (a.is_floating_point() or a.is_complex()):
        return "has other values"
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return "has NaN or infinity at other places"
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    error = (a - b).abs().max().item()
    limit = _TOLERANCE.get(a.dtype, 1e-4) * max(a.abs().max().item(), 1e-3)
    return None if error <= limit else f"differs by {error:.3g}"


def resized(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    return inputs.map_tensors(change)


def other_batch(inputs: Inputs) -> Inputs | None:
    """The same inputs with another batch size; None when there is no batch to change."""
    size = _batch_size(inputs)
    if not size:
        return None
    new = 2 if size == 1 or size > 2 else 3

    def change(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.size(0) != size:
            return tensor
        return tensor.index_select(0, torch.arange(new, device=tensor.device) % size)

    return resized(inputs, change)


def other_image(inputs: Inputs, grow: int = 32) -> Inputs | None:
    """The same inputs with larger images; None when no input looks like an image (rank 4, floating)."""

    def is_image(tensor: Tensor) -> bool:
        return tensor.dim() == 4 and tensor.is_floating_point()

    if not any(map(is_image, inputs.tensors())):
        return None

    def change(tensor: Tensor) -> Tensor:
        if not is_image(tensor):
            return tensor
        rows = torch.arange(tensor.size(2) + grow, device=tensor.device) % tensor.size(2)
        columns = torch.arange(tensor.size(3) + 2 * grow, device=tensor.device) % tensor.size(3)
        return tensor.index_select(2, rows).index_select(3, columns)

    return resized(inputs, change)


def _batch_size(inputs: Inputs) -> int:
    sizes = [t.size(0) for t in inputs.tensors() if t.dim() >= 2]
    return sizes[0] if sizes else 0
