"""Which int8 kernels of oneDNN this build of torch offers: ``torch.ops.onednn.q*`` on plain uint8 and int8 tensors.

They are the operations that Inductor calls; they need no compiler. They are not public API: a kernel counts as present only
when its schema is the one this module was written for (torch 2.11 to 2.15), and an activation is given to it only after its
arithmetic has been compared with the reference on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fxcompress.ir.activation import Activation
from fxcompress.quant.float_order import CONV_ACTIVATIONS, LINEAR_ACTIVATIONS, activate
from fxcompress.targets.cpu_kernels import PostOp, find_operator, ordinary_mode, post_op

__all__ = ["Int8Kernels", "fused_post_op", "int8_kernels", "runs_int8"]

_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups, "
_OUTPUT = "float output_scale, int output_zero_point, ScalarType? output_dtype, "
_OPERANDS = "Tensor qx, float x_scale, int x_zero_point, Tensor qw, Tensor w_scale, Tensor w_zero_point, "

# name -> the schema, as torch prints it
_SCHEMAS = {
    "onednn::qconv_prepack": (
        "(Tensor weight, Tensor w_scales, float x_scale, int x_zp, int[] stride, int[] padding, int[] dilation, int groups, "
        "int[]? x_shape=None) -> Tensor"
    ),
    "onednn::qconv_pointwise": (f"({_OPERANDS}Tensor? bias, {_GEOMETRY}{_OUTPUT}str attr, Scalar?[] scalars, str? algorithm) -> Tensor"),
    "onednn::qconv2d_pointwise.binary": (
        f"({_OPERANDS}Tensor(a!) qaccum, Tensor? bias, {_GEOMETRY}{_OUTPUT}float accum_scale, int accum_zero_point, "
        "str binary_attr, Scalar? alpha, str? unary_attr, Scalar?[] unary_scalars, str? unary_algorithm) -> Tensor"
    ),
    "onednn::qlinear_prepack": "(Tensor weight, int[]? x_shape) -> Tensor",
    "onednn::qlinear_pointwise": (
        f"({_OPERANDS}Tensor? bias, {_OUTPUT}str post_op_name, Scalar?[] post_op_args, str post_op_algorithm) -> Tensor"
    ),
    "onednn::qlinear_pointwise.binary": (
        f"({_OPERANDS}Tensor? other, Tensor? bias, {_OUTPUT}float other_scale, int other_zp, str binary_post_op, "
        "float binary_alpha, str unary_post_op, Scalar?[] unary_post_op_args, str unary_post_op_algorithm) -> Tensor"
    ),
}


@dataclass(frozen=True)
class Int8Kernels:
    """The operations found; ``None`` where this build of torch has not got one."""

    pack_conv: Any
    conv: Any
    conv_sum: Any
    pack_linear: Any
    linear: Any
    linear_sum: Any

    def missing(self) -> str | None:
        """Why no integer layer can be lowered, or None."""
        if None in (self.pack_conv, self.conv, self.pack_linear, self.linear):
            return "this build of torch has no int8 kernels of oneDNN (torch.ops.onednn.qconv_pointwise)"
        return None


@cache
def int8_kernels() -> Int8Kernels:
    """The kernels of this build of torch, looked up once."""
    if not torch.backends.mkldnn.is_available():
        return Int8Kernels(*[None] * len(_SCHEMAS))
    return Int8Kernels(*(find_operator(name, signature) for name, signature in _SCHEMAS.items()))


def runs_int8(q: Tensor) -> bool:
    """Whether ``q`` may go to a kernel now: a plain dense uint8 tensor on the CPU, in ordinary mode."""
    return type(q) is Tensor and q.dtype is torch.uint8 and q.is_cpu and q.layout is torch.strided and ordinary_mode()


def fused_post_op(activation: Activation | None, *, linear: bool) -> PostOp | None:
    """The arguments by which a kernel applies ``activation`` itself; None where it must not."""
    if activation is None:
        return post_op(None)
    if activation.name not in (LINEAR_ACTIVATIONS if linear else CONV_ACTIVATIONS) or not _agrees(activation):
        return None
    return post_op(activation)


@cache
def _agrees(activation: Activation) -> bool:
    """Whether a kernel's activation gives the bits of the reference on 65,025 numbers from -130 to 130, zero among them."""
    post = post_op(activation)
    if post is None or int8_kernels().missing():
        return False
    q, weight = torch.arange(1, 256, dtype=torch.uint8).view(-1, 1), torch.arange(-127, 128, dtype=torch.int8).view(-1, 1)
    scale = torch.full((255,), 0.004)
    y = (q.double() @ weight.double().T).float() * scale
    kernel, packed = int8_kernels().linear, int8_kernels().pack_linear(weight, None)
    zeros = torch.zeros(255, dtype=torch.int32)
    found = kernel(q, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, post.attr, list(post.scalars), post.algorithm)
    return torch.equal(found, activate(activation, y))
