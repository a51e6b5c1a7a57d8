"""Which float32 kernels of oneDNN and MKL this build of torch offers, and when a tensor may go to them.

They are the operations that ``torch.compile`` with freezing calls; they need no compiler. They are not public API:
a kernel counts as present only when its schema is the one this module was written for (torch 2.11 to 2.15).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxcompress.errors import ModeError
from fxcompress.ir.activation import Activation

__all__ = [
    "CpuKernels",
    "PostOp",
    "Recording",
    "find_operator",
    "kernels",
    "ordinary_mode",
    "post_op",
    "recording",
    "refuse_gradients",
    "runs_native",
]

# name -> the schema, as torch prints it
_SCHEMAS = {
    "mkldnn::_reorder_convolution_weight": (
        "(Tensor self, int[2] padding=0, int[2] stride=1, int[2] dilation=1, int groups=1, int[]? input_size=None) -> Tensor Y"
    ),
    "mkldnn::_convolution_pointwise": (
        "(Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, int groups, "
        "str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
    ),
    "mkldnn::_convolution_pointwise.binary": (
        "(Tensor X, Tensor other, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, int groups, "
        "str binary_attr, Scalar? alpha, str? unary_attr, Scalar?[] unary_scalars, str? unary_algorithm) -> Tensor Y"
    ),
    "mkldnn::_convolution_pointwise_.binary": (
        "(Tensor(a!) other, Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, int groups, "
        "str binary_attr, Scalar? alpha, str? unary_attr, Scalar?[] unary_scalars, str? unary_algorithm) -> Tensor(a!) Y"
    ),
    "mkldnn::_reorder_linear_weight": "(Tensor self, int? batch_size=None) -> Tensor Y",
    "mkldnn::_linear_pointwise": "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y",
    "mkl::_mkl_reorder_linear_weight": "(Tensor X, int batch_size) -> Tensor",
    "mkl::_mkl_linear": "(Tensor X, Tensor MKL_W, Tensor ORI_W, Tensor? B, int batch_size) -> Tensor",
}


@dataclass(frozen=True)
class PostOp:
    """The activation arguments of a oneDNN kernel: ``attr, scalars, algorithm``."""

    attr: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


@dataclass(frozen=True)
class CpuKernels:
    """The operations found; ``None`` where this build of torch has not got one."""

    reorder_conv: Any
    conv: Any
    conv_binary: Any
    conv_binary_: Any
    reorder_linear: Any
    linear: Any
    mkl_reorder: Any
    mkl_linear: Any

    def missing(self) -> str | None:
        """Why nothing can be lowered at all, or None."""
        if self.conv is None or self.reorder_conv is None:
            return "this build of torch has no oneDNN convolution kernels (torch.ops.mkldnn._convolution_pointwise)"
        return None


def find_operator(name: str, signature: str) -> Any:
    """The operator ``namespace::name[.overload]``, or None when absent or of another schema than ``name + signature``."""
    operator, _, overload = name.partition(".")
    try:
        schema = torch._C._get_schema(operator, overload)
    except RuntimeError:  # what torch raises for an unknown operator
        return None
    if str(schema) != name + signature:
        return None
    namespace, _, short = operator.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), short), overload or "default")


@cache
def kernels() -> CpuKernels:
    """The kernels of this build of torch, looked up once."""
    if not torch.backends.mkldnn.is_available():
        return CpuKernels(*[None] * len(_SCHEMAS))
    return CpuKernels(*(find_operator(name, signature) for name, signature in _SCHEMAS.items()))


# activations that oneDNN applies inside a convolution or linear; elu and mish it does not take from torch
_ATTRS = {
    "relu": "relu",
    "hardtanh": "hardtanh",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "silu": "swish",
    "gelu": "gelu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
}


def post_op(activation: Activation | None) -> PostOp | None:
    """The oneDNN form of ``activation`` (``none`` for None); None when oneDNN has not got it.

    The kernels differ from torch in one value: relu, hardtanh and hardsigmoid turn NaN into a number, as they do
    under ``torch.compile`` with freezing.
    """
    if activation is None:
        return PostOp("none")
    attr = _ATTRS.get(activation.name)
    if attr is None:
        return None
    if activation.name == "gelu":
        return PostOp(attr, (), str(activation.args[0]))
    return PostOp(attr, tuple(float(a) for a in activation.args))


class Recording(TorchDispatchMode):
    """A mode that takes down which kernels are called, and with what."""


def recording() -> bool:
    """Whether a :class:`Recording`, and no other mode, sees the operations now."""
    return torch._C._len_torch_dispatch_stack() == 1 and isinstance(torch._C._get_dispatch_stack_at(0), Recording)


def ordinary_mode() -> bool:
    """Whether operations run plainly now: no autocast, no tracing or compiling, no ``torch.func`` transform, and no dispatch
    mode that wants to see ordinary operations (fake tensors, flop counters); a :class:`Recording` wants to see the kernels."""
    return (
        not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and (torch._C._len_torch_dispatch_stack() == 0 or recording())
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def runs_native(x: Tensor) -> bool:
    """Whether ``x`` may go to a oneDNN kernel now: a plain dense float32 tensor on the CPU, in :func:`ordinary_mode`."""
    return type(x) is Tensor and x.dtype is torch.float32 and x.is_cpu and x.layout is torch.strided and ordinary_mode()


def refuse_gradients(*tensors: Tensor | None) -> None:
    """Raise :class:`ModeError` when autograd would have to run through one of ``tensors``."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ModeError(
            "a lowered module has no backward pass, but its input requires a gradient",
            hint="call the model under torch.no_grad() or torch.inference_mode(), or train the model before it is compressed",
        )
