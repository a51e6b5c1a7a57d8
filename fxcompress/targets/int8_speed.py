"""Is a layer faster in integers than in float, here? :class:`Int8Speed` measures both forms, or reads a table of throughputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.modules import QuantConv, QuantLinear
from fxcompress.targets import latency_cache
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear, lowerable
from fxcompress.targets.int8_modules import PackedQuantConv, PackedQuantLinear, int8_lowerable
from fxcompress.targets.int8_table import Table, table
from fxcompress.targets.machine import cpu_name

__all__ = ["Int8Speed", "LayerForm", "form_of"]

_SECONDS = 0.004  # of samples per form and round
_ROUNDS = 3
_FEWEST, _MOST = 3, 40  # samples per form and round
_BUDGET = 20.0  # seconds for all layers of one network; then the table answers


@dataclass(frozen=True)
class LayerForm:
    """What the time of a layer depends on.

    Attributes:
        shape: of the input, (N, C, ...) of a convolution or (..., in_features) of a linear.
        kernel: empty for a linear.
    """

    shape: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    activation: Activation | None = None

    @property
    def inputs(self) -> int:
        """Channels or features."""
        return self.shape[1] if self.kernel else self.shape[-1]

    @property
    def pixels(self) -> int:
        """Positions at which all output channels are computed, over the whole batch."""
        if not self.kernel:
            return torch.Size(self.shape[:-1]).numel()
        numbers = zip(self.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return self.shape[0] * torch.Size([(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers]).numel()

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.pixels * self.outputs * (self.inputs // self.groups) * torch.Size(self.kernel).numel()

    def __str__(self) -> str:
        """Unambiguous; the key in the cache."""
        shape = "x".join(map(str, self.shape))
        if not self.kernel:
            return f"linear {shape}->{self.outputs} {self.activation}"
        numbers = (self.kernel, self.stride, self.padding, self.dilation)
        text = " ".join(f"{letter}{'x'.join(map(str, n))}" for letter, n in zip("kspd", numbers, strict=True))
        return f"conv {shape}->{self.outputs} {text} g{self.groups} {self.activation}"


def form_of(layer: nn.Module, shape: Sequence[int]) -> LayerForm:
    """Of a plain, fused or observed Conv1d, Conv2d, Conv3d or Linear for inputs of ``shape``. InputError for anything else."""
    activation: Activation | None = getattr(layer, "activation", None)
    if isinstance(layer, nn.Linear):
        return LayerForm(tuple(shape), layer.out_features, activation=activation)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise InputError(f"no int8 form of {type(layer).__name__} is known", hint="ask for convolutions and linears")
    padding: Any = layer._reversed_padding_repeated_twice[::-2]
    kernel, stride, dilation = tuple(layer.kernel_size), tuple(layer.stride), tuple(layer.dilation)
    return LayerForm(tuple(shape), layer.out_channels, kernel, stride, tuple(padding), dilation, layer.groups, activation)


@dataclass
class Int8Speed:
    """Seconds of a layer in float32 and in int8: ``speed(layer, shape of its input)``.

    Args:
        mode: ``measure`` runs both packed forms on this machine, with as many threads as torch has now; ``table`` computes from
            throughputs that were measured before on machines of this kind. The table also answers for what cannot be measured.
        cache: a file that keeps measured times between processes; None for none.
        budget: seconds to measure in all.

    Attributes:
        measured: how many layers were measured; what the cache knew is not among them.
        remarks: why the cache could not be used, if so.
    """

    mode: Literal["measure", "table"] = "table"
    cache: Path | None = None
    budget: float = _BUDGET
    measured: int = field(default=0, init=False)
    remarks: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.mode not in ("measure", "table"):
            raise InputError(f"the speed of int8 by '{self.mode}'", hint="write 'measure' or 'table'")
        self._known: dict[str, float] = {}
        self._fresh: dict[str, float] = {}
        self._machine = machine()
        self._table: Table = table()
        if self.mode == "measure" and self.cache is not None:
            self._known, problem = latency_cache.load(self.cache, self._machine)
            self.remarks += [problem] if problem else []

    def __call__(self, layer: nn.Module, shape: Sequence[int]) -> tuple[float, float]:
        """Raises InputError for a layer without an int8 form."""
        return self.of(form_of(layer, shape))

    def of(self, form: LayerForm) -> tuple[float, float]:
        """Seconds in float32 and in int8."""
        names = f"{form} float32", f"{form} int8"
        if self.mode == "table" or form.macs == 0:
            return self._table.seconds(form)
        if not all(name in self._known for name in names):
            found = self._measure(form)
            if found is None:
                return self._table.seconds(form)
            self._fresh.update(zip(names, found, strict=True))
            self._known.update(self._fresh)
        return self._known[names[0]], self._known[names[1]]

    def store(self) -> None:
        """Write what was measured to the cache file, if there is one."""
        if self.cache is not None and self._fresh:
            problem = latency_cache.save(self.cache, self._machine, self._fresh)
            self.remarks += [problem] if problem else []

    def _measure(self, form: LayerForm) -> tuple[float, float] | None:
        began = time.perf_counter()
        if self.budget <= 0:
            return None
        with torch.inference_mode():
            built = _built(form)
            found = None if built is None else _race(*built)
        self.budget -= time.perf_counter() - began
        self.measured += found is not None
        return found


def machine() -> str:
    """What measured times depend on besides the layer."""
    return f"{cpu_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads, int8"


def _built(form: LayerForm) -> tuple[Callable[[], Tensor], Callable[[], Tensor]] | None:
    """One call in float and one in int8, as they will run; None where one of them has no kernel."""
    size = (form.outputs, form.inputs // form.groups, *form.kernel)
    integers, scale, bias = torch.ones(size, dtype=torch.int8), torch.full((form.outputs,), 0.01), torch.zeros(form.outputs)
    x, q = _laid_out(torch.ones(form.shape)), _laid_out(torch.ones(form.shape, dtype=torch.uint8))
    common: dict[str, Any] = {"source": QParams(0.01), "qparams": QParams(0.01), "activation": form.activation}
    numbers: dict[str, Any] = {"stride": form.stride, "padding": form.padding, "dilation": form.dilation, "groups": form.groups}
    if lowerable(nn.Linear(1, 1)) is not None:
        return None
    if form.kernel:
        conv = QuantConv(integers, scale, bias, **numbers, **common)
        plain: nn.Module = PackedConv(integers.float(), bias, **numbers, activation=form.activation)
        packed: nn.Module | None = PackedQuantConv.of(conv) if int8_lowerable(conv) is None else None
    else:
        linear = QuantLinear(integers, scale, bias, **common)
        plain = PackedLinear(integers.float(), bias, activation=form.activation)
        packed = PackedQuantLinear.of(linear) if int8_lowerable(linear) is None else None
    if packed is None:
        return None
    return (lambda: plain(x)), (lambda: packed(q))


def _laid_out(x: Tensor) -> Tensor:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return x if layout is None else x.contiguous(memory_format=layout)


def _race(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[float, float]:
    """The fastest call of each, in turns, in the time of this thread: it computes or waits actively for the others, and what the
    machine does for other processes does not count."""
    first(), second()  # packs the weights
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for form, times in ((first, taken[0]), (second, taken[1])):
            form()  # wakes the threads up
            times += _samples(form)
    return min(taken[0]), min(taken[1])


def _samples(form: Callable[[], Tensor]) -> list[float]:
    times: list[float] = []
    while len(times) < _FEWEST or (sum(times) < _SECONDS and len(times) < _MOST):
        began = time.thread_time()
        form()
        times.append(time.thread_time() - began)
    return times
