"""Small random networks as data: a ``Net`` says what is computed, ``Net.build`` makes the module that computes it.

A network is a list of steps; step ``i`` reads earlier values by number (the inputs come first) and gives one value.
``repr`` of a ``Net`` is the Python text that makes it again, so a counterexample can be pasted into ``counterexamples.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


@dataclass(frozen=True, repr=False)
class Step:
    """``op`` applied to the values numbered ``reads``. Write it with :func:`step`."""

    op: str
    reads: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        parts = [repr(self.op), *map(str, self.reads), *(f"{k}={v!r}" for k, v in self.options)]
        return f"step({', '.join(parts)})"

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)


def step(op: str, *reads: int, **options: Any) -> Step:
    return Step(op, reads, tuple(options.items()))


@dataclass(frozen=True)
class Net:
    """``inputs``: shapes without the batch axis. ``outputs``: value numbers, in tuples and dicts written as ((key, value), ...)."""

    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: Any
    train: bool = False
    seed: int = field(default=0)

    def build(self) -> Network:
        """The module in float64, with random weights and statistics that depend on ``seed`` only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = (Network if len(self.inputs) == 1 else TwoInputs)(self)
            randomise(module)
            module.double().train(self.train)
        for at, one in enumerate(self.steps):
            if one.get("frozen") and one.get("same") is None:
                module.get_submodule(f"m{at}").eval()
        return module


class Network(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        for at, one in enumerate(net.steps):
            make_layer(self, at, one)

    def forward(self, x: Tensor) -> Any:
        return self.interpret([x])

    def interpret(self, values: list[Any]) -> Any:
        for at, one in enumerate(self.net.steps):
            values.append(run_step(self, at, one, [values[i] for i in one.reads]))
        return pick(self.net.outputs, values)


class TwoInputs(Network):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.interpret([x, y])


def pick(outputs: Any, values: list[Any]) -> Any:
    """Values in the structure of ``outputs``; a tuple of (name, ...) pairs is a dict."""
    if isinstance(outputs, int):
        return values[outputs]
    if outputs and all(isinstance(item, tuple) and item and isinstance(item[0], str) for item in outputs):
        return {key: pick(value, values) for key, value in outputs}
    return tuple(pick(item, values) for item in outputs)


def make_layer(host: nn.Module, at: int, one: Step) -> None:
    """Give ``host`` the module ``m{at}`` or the parameters ``w{at}``, ``b{at}``, ... that the step needs."""
    options = {k: v for k, v in one.options if k not in ("same", "tied", "frozen")}
    if one.get("same") is not None:
        return
    if one.op in LAYERS:
        layer = LAYERS[one.op](**options)
        host.add_module(f"m{at}", layer)
        if one.get("tied") is not None:
            layer.weight = host.get_submodule(f"m{one.get('tied')}").weight
    if one.op in TENSORS:
        TENSORS[one.op](host, at, **options)


def run_step(host: nn.Module, at: int, one: Step, values: list[Any]) -> Any:
    source = at if one.get("same") is None else one.get("same")
    if one.op in LAYERS:
        return host.get_submodule(f"m{source}")(*values)
    options = {k: v for k, v in one.options if k not in ("same", "tied", "frozen")}
    if one.op in TENSORS:
        return USES[one.op](host, source, *values, **options)
    return CALLS[one.op](*values, **options)


def randomise(module: nn.Module) -> None:
    """Statistics and affine parameters of norms away from their neutral start; some scales negative, one of them zero."""
    for child in module.modules():
        if isinstance(child, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
            if child.weight is not None:
                nn.init.normal_(child.weight)
                nn.init.normal_(child.bias)
            if getattr(child, "running_mean", None) is not None:
                nn.init.normal_(child.running_mean)
                nn.init.uniform_(child.running_var, 0.01, 2.0)


# -- layers: steps that own a module ------------------------------------------------------------------------------------


def _conv(cin: int, cout: int, kernel: int = 1, d: int = 2, mode: str = "zeros", **rest: Any) -> nn.Module:
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[d](cin, cout, kernel, padding_mode=mode, **rest)


def _deconv(cin: int, cout: int, kernel: int = 1, d: int = 2, **rest: Any) -> nn.Module:
    return {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[d](cin, cout, kernel, **rest)


def _bn(n: int, d: int = 2, **rest: Any) -> nn.Module:
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[d](n, **rest)


def _in(n: int, d: int = 2, **rest: Any) -> nn.Module:
    return {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}[d](n, **rest)


def _pool(kind: str, kernel: int, d: int = 2, **rest: Any) -> nn.Module:
    table = {"max": (nn.MaxPool1d, nn.MaxPool2d), "avg": (nn.AvgPool1d, nn.AvgPool2d)}
    return table[kind][d - 1](kernel, **rest)


def _adaptive(size: int, d: int = 2, kind: str = "avg") -> nn.Module:
    table = {"max": (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "avg": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)}
    return table[kind][d - 1](size)


class SelfAttention(nn.Module):
    """Scaled dot-product attention with its own projections; traced through, not a leaf."""

    def __init__(self, width: int, heads: int, p: float) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.heads, self.width, self.p = heads, width, p

    def forward(self, x: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.view(t.size(0), -1, self.heads, self.width // self.heads).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        return y.transpose(1, 2).reshape(x.size(0), -1, self.width)


class MultiHead(nn.Module):
    """``nn.MultiheadAttention``, a leaf, on one value (``cross``: keys and values are another one); its weights are used or not."""

    def __init__(self, width: int, heads: int, p: float, first: bool, bias: bool, cross: bool, weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, p, bias, batch_first=first)
        self.cross, self.weights = cross, weights

    def forward(self, x: Tensor) -> Tensor:
        y = x.flip(1) if self.cross else x
        result, weights = self.attention(x, y, y, need_weights=self.weights)
        return result + weights.sum() if self.weights else result


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
DROPOUTS = {"element": nn.Dropout, "1d": nn.Dropout1d, "2d": nn.Dropout2d, "alpha": nn.AlphaDropout}

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "act": lambda kind, **rest: ACTIVATIONS[kind](**rest),
    "identity": nn.Identity,
    "linear": lambda cin, cout, bias=True: nn.Linear(cin, cout, bias),
    "conv": _conv,
    "bn": _bn,
    "deconv": _deconv,
    "ln": lambda shape, **rest: nn.LayerNorm(shape, **rest),
    "gn": lambda groups, n, **rest: nn.GroupNorm(groups, n, **rest),
    "in": _in,
    "dropout": lambda p=0.5, kind="element", inplace=False: DROPOUTS[kind](p, inplace),
    "prelu": lambda n: nn.PReLU(n),
    "softmax": lambda dim: nn.Softmax(dim),
    "pool": _pool,
    "adaptive": _adaptive,
    "upsample": lambda **rest: nn.Upsample(**rest),
    "pixel_shuffle": lambda r: nn.PixelShuffle(r),
    "flatten_layer": lambda start=1: nn.Flatten(start),
    "attention": lambda width, heads, p=0.0: SelfAttention(width, heads, p),
    "mha": lambda width, heads, p=0.0, first=True, bias=True, cross=False, weights=False: MultiHead(
        width, heads, p, first, bias, cross, weights
    ),
}


# -- tensors: steps that own parameters or buffers ----------------------------------------------------------------------


def _own_weight(host: nn.Module, at: int, weight: tuple[int, ...], bias: int | None) -> None:
    host.register_parameter(f"w{at}", nn.Parameter(torch.randn(weight) / max(1, torch.Size(weight[1:]).numel()) ** 0.5))
    host.register_parameter(f"b{at}", None if bias is None else nn.Parameter(torch.randn(bias)))


def _own_fconv(host: nn.Module, at: int, cin: int, cout: int, kernel: int = 1, groups: int = 1, bias: bool = True, d: int = 2) -> None:
    _own_weight(host, at, (cout, cin // groups, *[kernel] * d), cout if bias else None)


def _use_fconv(host: nn.Module, at: int, x: Any, groups: int = 1, d: int = 2, kernel: int = 1, **_: Any) -> Any:
    call = {1: F.conv1d, 2: F.conv2d}[d]
    return call(x, getattr(host, f"w{at}"), getattr(host, f"b{at}"), padding=kernel // 2, groups=groups)


def _own_flinear(host: nn.Module, at: int, cin: int, cout: int, bias: bool = True) -> None:
    _own_weight(host, at, (cout, cin), cout if bias else None)


def _use_flinear(host: nn.Module, at: int, x: Any, **_: Any) -> Any:
    return F.linear(x, getattr(host, f"w{at}"), getattr(host, f"b{at}"))


def _own_fbn(host: nn.Module, at: int, n: int, affine: bool = True) -> None:
    host.register_buffer(f"mean{at}", torch.randn(n))
    host.register_buffer(f"var{at}", torch.rand(n) + 0.1)
    host.register_parameter(f"w{at}", nn.Parameter(torch.randn(n)) if affine else None)
    host.register_parameter(f"b{at}", nn.Parameter(torch.randn(n)) if affine else None)


def _use_fbn(host: nn.Module, at: int, x: Any, **_: Any) -> Any:
    stats = getattr(host, f"mean{at}"), getattr(host, f"var{at}")
    return F.batch_norm(x, *stats, getattr(host, f"w{at}"), getattr(host, f"b{at}"), training=host.training)


def _own_tensor(host: nn.Module, at: int, shape: tuple[int, ...], buffer: bool = False) -> None:
    if buffer:
        host.register_buffer(f"w{at}", torch.randn(shape))
    else:
        host.register_parameter(f"w{at}", nn.Parameter(torch.randn(shape)))


TENSORS: dict[str, Callable[..., None]] = {
    "param": _own_tensor,
    "counter": _own_tensor,
    "fconv": _own_fconv,
    "flinear": _own_flinear,
    "fbn": _own_fbn,
}
USES: dict[str, Callable[..., Any]] = {
    "param": lambda host, at, **_: getattr(host, f"w{at}"),
    "counter": lambda host, at, **_: getattr(host, f"w{at}").add_(1.0),  # state that every call changes
    "fconv": _use_fconv,
    "flinear": _use_flinear,
    "fbn": _use_fbn,
}


# -- calls: steps without tensors of their own --------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu,
    "relu_": torch.relu_,
    "torch.relu": torch.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "hardtanh_": F.hardtanh_,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": lambda x: torch.exp(x.clamp(max=3.0)),
    "abs": torch.abs,
    "normalize": F.normalize,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "iadd": operator.iadd,
    "isub": operator.isub,
    "imul": operator.imul,
    "torch.add": torch.add,
    "torch.mul": torch.mul,
    "torch.maximum": torch.maximum,
    ".add": lambda x, y: x.add(y),
    ".add_": lambda x, y: x.add_(y),
    ".mul_": lambda x, y: x.mul_(y),
    ".sub_": lambda x, y: x.sub_(y),
}


def _slice(x: Any, dim: int, start: int | None, stop: int | None, by: int | None = None) -> Any:
    return x[(*[slice(None)] * dim, slice(start, stop, by))]


def _mT(x: Any) -> Any:
    """``x.mT``; the tracer would otherwise note the attribute only where it is used, after a write perhaps."""
    return x.mT if isinstance(x, Tensor) else x.tracer.create_proxy("call_function", getattr, (x, "mT"), {})


def _shuffle(x: Any, groups: int, c: int, form: str = "view") -> Any:
    n, h, w = x.size(0), x.size(2), x.size(3)
    y = x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous()
    return y.view(n, c, h, w) if form == "view" else y.reshape(n, -1, h, w)


CALLS: dict[str, Callable[..., Any]] = {
    "fn": lambda x, name, **rest: FUNCTIONS[name](x, **rest),
    "method": lambda x, name, **rest: getattr(x, name)(**rest),
    "binary": lambda x, y, name: OPERATORS[name](x, y),
    "scalar": lambda x, name, value: OPERATORS[name](x, value),
    "rscalar": lambda x, name, value: OPERATORS[name](value, x),
    "div": lambda x, value: x / value,
    "scaled_add": lambda x, y, alpha: torch.add(x, y, alpha=alpha),
    "constant": lambda x, shape, value: x + torch.full(shape, value),
    "like": lambda x, name, value=2.0: x + (torch.full_like(x, value) if name == "full" else torch.ones_like(x)),
    "cat": lambda *xs, dim=1: torch.cat(xs, dim),
    "stack": lambda *xs, dim=1: torch.stack(xs, dim),
    "chunk": lambda x, chunks, dim=1: x.chunk(chunks, dim),
    "split": lambda x, sizes, dim=1: torch.split(x, sizes, dim),
    "unbind": lambda x, dim=1: x.unbind(dim),
    "item": lambda xs, at: xs[at],
    "slice": _slice,
    "select": lambda x, dim, at: x[(*[slice(None)] * dim, at)],
    "flatten": lambda x, start=1, form="torch": torch.flatten(x, start) if form == "torch" else x.flatten(start),
    "rows": lambda x, form="view": getattr(x, form)(x.size(0), -1),
    "rows_fixed": lambda x, n: x.view(-1, n),
    "reshape": lambda x, shape: x.reshape(x.shape[0], *shape),
    "view": lambda x, shape: x.view(x.size(0), *shape),
    "permute": lambda x, dims: x.permute(*dims),
    "transpose": lambda x, a, b: x.transpose(a, b),
    "mT": _mT,
    "cast": lambda x, form: x.to(x.dtype) if form == "to" else x.type_as(x),
    "einsum": lambda x, text: torch.einsum(text, x),
    "unsqueeze": lambda x, dim: x.unsqueeze(dim),
    "squeeze": lambda x, dim: x.squeeze(dim),
    "expand_as": lambda x, y: x.expand_as(y),
    "shuffle": _shuffle,
    "interpolate": lambda x, **rest: F.interpolate(x, **rest),
    "resize_as": lambda x, y: F.interpolate(x, size=y.shape[2:], mode="bilinear", align_corners=False),
    "fpool": lambda x, kernel, kind="max": (F.max_pool2d if kind == "max" else F.avg_pool2d)(x, kernel),
    "pad": lambda x, pad, mode="constant": F.pad(x, pad, mode=mode),
    "mean": lambda x, dim, keepdim=False: x.mean(dim, keepdim=keepdim),
    "fdropout": lambda x, p=0.5, training=False, inplace=False: F.dropout(x, p, training, inplace),
    "fsoftmax": lambda x, dim=-1: F.softmax(x, dim),
    "flayer_norm": lambda x, shape: F.layer_norm(x, shape),
    "matmul": lambda x, y: x @ y,
}


class InPlaceProxy(fx.Proxy):
    """Records ``x += y`` as what it is; the plain proxy records ``x + y``."""


def _in_place(name: str) -> Callable[[InPlaceProxy, Any], Any]:
    def method(self: InPlaceProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(InPlaceProxy, f"__{_name}__", _in_place(_name))


class Tracer(fx.Tracer):
    """The plain tracer without stack traces (slow), and faithful to ``x += y``."""

    record_stack_traces = False
    proxy_buffer_attributes = True  # else a buffer is read, and written to, while the graph is traced

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)


def trace(module: nn.Module) -> fx.GraphModule:
    """The graph of ``module``; its parameters and leaf modules are shared with it, not copied."""
    return fx.GraphModule(module, Tracer().trace(module), type(module).__name__)
