"""What a quantized network must satisfy, checked with arithmetic of its own: real numbers in float64 beside the integers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.ir.view import kind_of, view
from fxcompress.quant import elementwise, modules, pooling
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantize

HALF = 0.52  # of a step: rounding, the float32 arithmetic before it, and the 14-bit multipliers of additions


@dataclass(frozen=True)
class Grid:
    """A uint8 tensor and what its integers stand for."""

    q: Tensor
    qparams: QParams

    @property
    def real(self) -> Tensor:
        return (self.q.double() - self.qparams.zero_point) * float(self.qparams.scale)


class IntegerChecker(fx.Interpreter):
    """Runs an integer graph; says when integers are read as something that they do not stand for, or are not the right ones."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.computed = 0  # integer operations that were checked

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        grids = [a for a in torch.utils._pytree.tree_leaves((args, kwargs), is_leaf=_is_grid) if _is_grid(a)]
        if n.op == "call_module":
            layer = self.fetch_attr(str(n.target))
            check = CHECKS.get(type(layer))
            if check is not None:
                self.computed += 1
                return check(layer, n.name, *args, **kwargs)
        if not grids:
            return getattr(self, n.op)(n.target, args, kwargs)
        assert n.op != "output", f"{n}: integers leave the graph"
        return self._moved(n, args, kwargs, grids)

    def _moved(self, n: fx.Node, args: Any, kwargs: Any, grids: list[Grid]) -> Any:
        kind = kind_of(n)
        if kind in ("size", "dim", "getattr", "numel", "ndimension"):
            plain = torch.utils._pytree.tree_map(_plain, (args, kwargs), is_leaf=_is_grid)
            return getattr(self, n.op)(n.target, *plain)
        assert kind in MOVING, f"{n}: {kind} reads integers"
        first = grids[0].qparams
        if kind not in ("view_as", "expand_as"):
            assert all(g.qparams == first for g in grids), f"{n} joins integers of different scales"
        if kind == "pad":
            op = view(n)
            assert op is not None
            assert op["mode"] != "constant" or op["value"] == first.zero_point, f"{n} pads with {op['value']}, not with zero"
        plain = torch.utils._pytree.tree_map(_plain, (args, kwargs), is_leaf=_is_grid)
        result = getattr(self, n.op)(n.target, *plain)
        return torch.utils._pytree.tree_map_only(Tensor, lambda t: Grid(t, first), result)


_MOVING = """
    identity contiguous clone detach view reshape flatten unflatten permute transpose t squeeze unsqueeze expand expand_as view_as getitem
    select movedim narrow chunk split tensor_split unbind cat stack repeat repeat_interleave roll flip index_select pad pad_module
    pixel_shuffle pixel_unshuffle channel_shuffle interpolate
"""
MOVING = frozenset(_MOVING.split())
"""Operations that give some of the numbers that they get."""


def _is_grid(value: Any) -> bool:
    return isinstance(value, Grid)


def _plain(value: Any) -> Any:
    return value.q if isinstance(value, Grid) else value


def _real(value: Any) -> Tensor:
    return value.real if isinstance(value, Grid) else value.double()


def _meant(value: Any, qparams: QParams | None, where: str) -> None:
    """``value`` is what ``qparams`` say: integers of that scale, or float."""
    if qparams is None:
        assert isinstance(value, Tensor), f"{where}: integers where float is expected"
        assert value.dtype == torch.float32, where
    else:
        assert isinstance(value, Grid), f"{where}: float where integers are expected"
        assert value.qparams == qparams, f"{where}: integers of {value.qparams} are read as {qparams}"


def _right(y: Tensor, want: Tensor, qparams: QParams | None, where: str) -> Any:
    """``y``, which must be the real numbers ``want`` rounded to the grid, or to float32."""
    want = want.nan_to_num(0.0)
    if qparams is None:
        far = (y.double() - want).abs().max().item() if y.numel() else 0.0
        assert far <= 1e-4 * max(want.abs().max().item() if y.numel() else 0.0, 1e-6), f"{where}: off by {far:.3g}"
        return y
    assert y.dtype == torch.uint8, where
    exact = (want / qparams.scale + qparams.zero_point).clamp(0, 2**qparams.bits - 1)
    off = (y.double() - exact).abs().max().item() if y.numel() else 0.0
    slack = 1e-4 * (want.abs().max().item() / qparams.scale if y.numel() else 0.0)
    assert off <= HALF + min(slack, 0.5), f"{where}: an integer is off by {off:.3f} steps"
    return Grid(y, qparams)


def _activated(y: Tensor, layer: nn.Module) -> Tensor:
    activation: Any = getattr(layer, "activation", None)
    return y if activation is None else activation.apply(y)


def _layer(layer: Any, where: str, x: Any, residual: Any = None) -> Any:
    _meant(x, layer.source, where)
    if residual is not None:
        _meant(residual, layer.residual, where)
    axes = [1] * (layer.weight.dim() - 1)
    weight = layer.weight.double() * layer.weight_scale.double().reshape(-1, *axes)
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, modules.QuantConv):
        conv: Any = (F.conv1d, F.conv2d, F.conv3d)[layer.weight.dim() - 3]
        want = conv(x.real, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        want = F.linear(x.real, weight, bias)
    want = _activated(want if residual is None else want + _real(residual), layer)
    return _right(layer(x.q, None if residual is None else _plain(residual)), want, layer.qparams, where)


def _quantize(layer: Any, where: str, x: Any) -> Any:
    _meant(x, None, where)
    return _right(layer(x), x.double(), layer.qparams, where)


def _dequantize(layer: Any, where: str, x: Any) -> Any:
    _meant(x, layer.qparams, where)
    return _right(layer(x.q), x.real, None, where)


def _requantize(layer: Any, where: str, x: Any) -> Any:
    _meant(x, layer.source, where)
    return _right(layer(x.q), x.real, layer.qparams, where)


def _two(layer: Any, where: str, a: Any, b: Any) -> Any:
    _meant(a, layer.a, where)
    _meant(b, layer.b, where)
    want = _real(a) + _real(b) if isinstance(layer, elementwise.QuantAdd) else _real(a) * _real(b)
    return _right(layer(a.q, _plain(b)), _activated(want, layer), layer.qparams, where)


def _activation(layer: Any, where: str, x: Any) -> Any:
    _meant(x, layer.source, where)
    return _right(layer(x.q), layer.activation.apply(x.real), layer.qparams, where)


def _mean(layer: Any, where: str, x: Any) -> Any:
    _meant(x, layer.source, where)
    if isinstance(layer, elementwise.QuantMean):
        want = x.real.mean(layer.dims, keepdim=layer.keepdim)
    elif isinstance(layer, pooling.QuantAvgPool):
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(layer.kernel_size) - 1]
        divisor = () if layer.divisor is None else (layer.divisor,)
        want = pool(x.real, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad, *divisor)
    else:
        adaptive: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(layer.output_size) - 1]
        want = adaptive(x.real, layer.output_size)
    return _right(layer(x.q), want, layer.qparams, where)


def _max_pool(layer: Any, where: str, x: Any) -> Any:
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(layer.kernel_size) - 1]
    want = pool(x.real, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return _right(layer(x.q), want, x.qparams, where)


CHECKS: dict[type[nn.Module], Any] = {
    modules.QuantConv: _layer,
    modules.QuantLinear: _layer,
    modules.Quantize: _quantize,
    modules.Dequantize: _dequantize,
    modules.Requantize: _requantize,
    elementwise.QuantAdd: _two,
    elementwise.QuantMul: _two,
    elementwise.QuantActivation: _activation,
    elementwise.QuantMean: _mean,
    pooling.QuantAvgPool: _mean,
    pooling.QuantAdaptiveAvgPool: _mean,
    pooling.QuantMaxPool: _max_pool,
}


def check_integers(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> int:
    """AssertionError unless every integer of the graph is the right one for the integers it was computed from; gives how many
    integer operations there are."""
    checker, other = IntegerChecker(copy.deepcopy(module)), copy.deepcopy(module)
    with torch.no_grad():
        output = checker.run(*[t.clone() for t in inputs])
        again = other(*[t.clone() for t in inputs])
    for a, b in zip(torch.utils._pytree.tree_leaves(output), torch.utils._pytree.tree_leaves(again), strict=True):
        assert not isinstance(a, Tensor) or (a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()))
    return checker.computed


def shaken(fake: fx.GraphModule, seed: int) -> fx.GraphModule:
    """A fake-quantized graph in which everything moves by up to a tenth of a step before it is rounded.

    How far its output goes from the original says how much a few roundings to the other side may matter.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(fake)

    def shake(layer: FakeQuantize, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] + (torch.rand(args[0].shape, generator=generator) - 0.5) * (0.2 * layer.qparams.scale),)

    for layer in moved.modules():
        if isinstance(layer, FakeQuantize):
            layer.register_forward_pre_hook(shake)
    return moved


def sqnr(want: Any, got: Any) -> float:
    """Signal over noise of all floating-point outputs together, in dB; inf for equal ones."""
    leaves = (torch.utils._pytree.tree_leaves(value) for value in (want, got))
    pairs = [(a.detach(), b.detach()) for a, b in zip(*leaves, strict=True) if isinstance(a, Tensor) and a.is_floating_point()]
    tensors = [(a.double().nan_to_num(0, 0, 0), b.double().nan_to_num(0, 0, 0)) for a, b in pairs]
    noise = sum(float((a - b).square().sum()) for a, b in tensors)
    signal = sum(float(a.square().sum()) for a, _ in tensors)
    return float("inf") if noise == 0 else 10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)).item()
