"""Plans: one operation with packed weights, ready for inputs of one shape.

A plan is called as ``plan(x, residual, bias)`` and gives ``act(op(x) + residual)``. oneDNN chooses the layout of packed
weights by the input size; weights packed for another size give the same numbers but are reordered at every call, so plans are
kept by input shape (for most convolutions all sizes share one layout, and the packed weights are then equal).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.ir.activation import Activation
from fxcompress.targets.cpu_kernels import kernels, post_op

__all__ = ["ConvGeometry", "Plan", "conv_plan", "finish", "linear_plan", "matmul_plan"]

Plan = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True)
class ConvGeometry:
    """The numbers of a convolution, one entry per spatial dimension; zero padding, the same on both sides."""

    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output; an entry is below 1 where the input is too small."""
        numbers = zip(size, kernel, self.padding, self.stride, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in numbers)

    def as_2d(self) -> ConvGeometry:
        """A 1-d convolution as a 2-d one of height 1."""
        return ConvGeometry((0, *self.padding), (1, *self.stride), (1, *self.dilation), self.groups)


def finish(y: Tensor, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """``act(y + residual)`` in plain torch."""
    if residual is not None:
        y = y + residual
    return y if activation is None else activation.apply(y)


def conv_plan(weight: Tensor, shape: Sequence[int], geometry: ConvGeometry, activation: Activation | None, overwrite: bool) -> Plan:
    """Plan of a oneDNN convolution for (padded) inputs of ``shape``; ``weight`` has 3 to 5 dimensions.

    A residual of the output's shape is added inside the kernel, and so is a ReLU after it; other activations follow the sum.
    With ``overwrite`` the sum goes into the residual's own memory where that is a dense channels_last block apart from ``x``.
    """
    if weight.dim() == 3:
        return _line_plan(conv_plan(weight.unsqueeze(2), (*shape[:2], 1, *shape[2:]), geometry.as_2d(), activation, overwrite))
    found, post = kernels(), post_op(activation)
    conv, add, add_ = found.conv, found.conv_binary, found.conv_binary_
    if weight.shape[0] == 1:  # torch 2.11 raises
        add = None
    numbers = (list(geometry.padding), list(geometry.stride), list(geometry.dilation), geometry.groups)
    packed = found.reorder_conv(weight.contiguous(), *numbers, list(shape))
    plain: tuple[object, ...] = (*numbers, "none", [], "")
    fused: tuple[object, ...] = plain if post is None else (*numbers, post.attr, list(post.scalars), post.algorithm)
    is_relu = activation is not None and activation.name == "relu"
    summed: tuple[object, ...] = (*numbers, "add", 1.0, "relu" if is_relu else None, [], "" if is_relu else None)
    after, after_sum = activation if post is None else None, None if is_relu else activation
    out_shape = torch.Size((shape[0], weight.shape[0], *geometry.output_size(shape[2:], weight.shape[2:])))
    layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d

    def run(x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Tensor:
        if residual is None:
            y = conv(x, packed, bias, *fused)
            return y if after is None else after.apply(y)
        if add is None or residual.shape != out_shape:
            return finish(conv(x, packed, bias, *plain), residual, activation)
        if overwrite and add_ is not None and residual.is_contiguous(memory_format=layout) and _apart(x, residual):
            y = add_(residual, x, packed, bias, *summed)
        else:
            y = add(x, residual, packed, bias, *summed)
        return y if after_sum is None else after_sum.apply(y)

    return run


def _apart(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


def _line_plan(plane: Plan) -> Plan:
    """A plan for (N, C, L) from one for (N, C, 1, L)."""

    def run(x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Tensor:
        if residual is not None:
            residual = residual.unsqueeze(-2) if residual.dim() > 1 else residual
        return plane(x.unsqueeze(2), residual, bias).squeeze(2)

    return run


def matmul_plan(weight: Tensor, rows: int, activation: Activation | None) -> Plan:
    """Plan of a 1x1 convolution of single pixels, ``x`` of shape (rows, C, 1, ...), as an MKL matmul."""
    flat = _mkl_plan(weight.flatten(1), rows, None)
    shape = (rows, weight.shape[0]) + (1,) * (weight.dim() - 2)

    def run(x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Tensor:
        return finish(flat(x.flatten(1), None, bias).view(shape), residual, activation)

    return run


# multiply-adds below which MKL's cheap call wins against oneDNN's better kernel (7 us against 28 us for 96 x 24)
_SMALL = 300_000


def prefers_mkl(weight: Tensor, rows: int) -> bool:
    """Whether a linear of ``rows`` rows is so small that the cost of the call decides."""
    return kernels().mkl_linear is not None and rows * weight.numel() <= _SMALL


def linear_plan(weight: Tensor, rows: int, activation: Activation | None) -> Plan | None:
    """Plan of a linear over ``rows`` rows in total; ``weight`` is (out, in). None when this torch has no kernel.

    The residual is added afterwards: the ``binary`` form of oneDNN's linear builds its primitive anew at every call (6 ms).
    """
    if prefers_mkl(weight, rows):
        return _mkl_plan(weight, rows, activation)
    if kernels().linear is None:
        return None
    return _onednn_linear_plan(weight, rows, activation)


def _mkl_plan(weight: Tensor, rows: int, activation: Activation | None) -> Plan:
    linear, packed = kernels().mkl_linear, kernels().mkl_reorder(weight, rows)

    def run(x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Tensor:
        return finish(linear(x, packed, weight, bias, rows), residual, activation)

    return run


def _onednn_linear_plan(weight: Tensor, rows: int, activation: Activation | None) -> Plan:
    linear, post = kernels().linear, post_op(activation)
    packed = kernels().reorder_linear(weight.contiguous(), rows)
    fused: tuple[object, ...] = ("none", [], "") if post is None else (post.attr, list(post.scalars), post.algorithm)
    after = activation if post is None else None

    def run(x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Tensor:
        if residual is not None:
            return finish(linear(x, packed, bias, "none", [], ""), residual, activation)
        y = linear(x, packed, bias, *fused)
        return y if after is None else after.apply(y)

    return run
