"""How layers are written in ONNX: matrix products, attention, convolution, pooling, normalisation (see ``onnx_ops``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fxcompress.targets.onnx_ops import Table, composite, spread
from fxcompress.targets.onnx_trace import Writer
from fxcompress.targets.onnx_values import NotWritten, Value

# ---- matrix products


def _linear(w: Writer, input: Value, weight: Any, bias: Any = None) -> str:
    if input.ndim == 2:
        return w.node("Gemm", [input.name, w.name_of(weight), *([w.name_of(bias)] if bias is not None else [])], transB=1)
    if isinstance(weight, torch.Tensor):
        right = _transposed(w, weight)
    else:
        right = w.node("Transpose", [weight.name], perm=[1, 0])
    name = w.node("MatMul", [input.name, right])
    return name if bias is None else w.node("Add", [name, w.name_of(bias)])


def _transposed(w: Writer, weight: torch.Tensor) -> str:
    """A weight the other way round, written once for all its uses."""
    known = w.transposed.get(id(weight))
    if known is None:
        known = w.transposed[id(weight)] = weight.detach().t().contiguous()
        w.keep(weight)
    return w.constant(known)


def _matmul(w: Writer, input: Any, mat2: Any = None, *, other: Any = None) -> str:
    dtype = w.out[0].dtype
    return w.node("MatMul", [w.name_of(input, dtype), w.name_of(mat2 if other is None else other, dtype)])


@composite
def _addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = mat1 @ mat2
    product = product if alpha == 1 else product * alpha
    return product + (input if beta == 1 else input * beta)


def _einsum(w: Writer, equation: str, *operands: Any) -> str:
    flat = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    return w.node("Einsum", [w.name_of(x) for x in flat], equation=equation)


@composite
def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T scale + mask) v; the scale goes to q, which is the smaller tensor."""
    if is_causal or enable_gqa or dropout_p:
        raise NotWritten("scaled_dot_product_attention with is_causal, enable_gqa or dropout")
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = _additive(attn_mask)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def _additive(mask: Any) -> Any:
    """0 where ``mask`` is true and -inf elsewhere."""
    zeros = torch.zeros(())
    return (
        mask.writer.call(torch.where, (mask, zeros, zeros - math.inf), {}) if isinstance(mask, Value) else torch.where(mask, 0.0, -math.inf)
    )


@composite
def _multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """F.multi_head_attention_forward for inputs (length, batch, channels)."""
    unusual = (bias_k, bias_v, static_k, static_v, key_padding_mask)
    if any(x is not None for x in unusual) or add_zero_attn or use_separate_proj_weight or query.ndim != 3 or (training and dropout_p):
        raise NotWritten("multi-head attention with bias_k, key_padding_mask, separate projections, or without a batch")
    (length, batch, width), source = query.shape, key.shape[0]
    parts = range(3)
    if query is key and key is value:
        projected = (
            F.linear(query, in_proj_weight, in_proj_bias).reshape(length, batch, 3, num_heads, width // num_heads).permute(2, 1, 3, 0, 4)
        )
        q, k, v = projected[0], projected[1], projected[2]
    else:
        weights = in_proj_weight.chunk(3)
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        sizes = (length, source, source)
        q, k, v = (
            F.linear((query, key, value)[i], weights[i], biases[i])
            .reshape(sizes[i], batch, num_heads, width // num_heads)
            .permute(1, 2, 0, 3)
            for i in parts
        )
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.reshape(batch, num_heads, length, source)
    if not need_weights:
        mixed, weights_out = F.scaled_dot_product_attention(q, k, v, attn_mask), None
    else:
        scores = (q * (1.0 / math.sqrt(width // num_heads))) @ k.transpose(-2, -1)
        weights_out = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
        mixed = weights_out @ v
        weights_out = weights_out.mean(1) if average_attn_weights else weights_out
    mixed = mixed.permute(2, 0, 1, 3).reshape(length, batch, width)
    return F.linear(mixed, out_proj_weight, out_proj_bias), weights_out


# ---- convolution and pooling


def _pads(padding: Any, rank: int, kernel: Sequence[int], dilation: Sequence[int], strides: Sequence[int]) -> list[int]:
    if padding == "valid":
        return [0] * 2 * rank
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return [int(p) for p in spread(padding, rank)] * 2


def _conv(rank: int) -> Callable[..., str]:
    def write(
        w: Writer, input: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> str:
        if input.ndim != rank + 2:
            raise NotWritten("a convolution without a batch dimension")
        kernel, strides, dilations = list(weight.shape[2:]), spread(stride, rank), spread(dilation, rank)
        operands = [input.name, w.name_of(weight), *([w.name_of(bias)] if bias is not None else [])]
        pads = _pads(padding, rank, kernel, dilations, strides)
        return w.node("Conv", operands, kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations, group=groups)

    return write


def _conv_transpose(rank: int) -> Callable[..., str]:
    def write(
        w: Writer,
        input: Value,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> str:
        if input.ndim != rank + 2:
            raise NotWritten("a convolution without a batch dimension")
        return w.node(
            "ConvTranspose",
            [input.name, w.name_of(weight), *([w.name_of(bias)] if bias is not None else [])],
            kernel_shape=list(weight.shape[2:]),
            strides=spread(stride, rank),
            pads=spread(padding, rank) * 2,
            output_padding=spread(output_padding, rank),
            dilations=spread(dilation, rank),
            group=groups,
        )

    return write


def _max_pool(rank: int) -> Callable[..., str]:
    def write(
        w: Writer,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> str:
        if return_indices or input.ndim != rank + 2:
            raise NotWritten("max_pool with indices or without a batch dimension")
        return w.node(
            "MaxPool",
            [input.name],
            kernel_shape=spread(kernel_size, rank),
            strides=spread(stride if stride else kernel_size, rank),
            pads=spread(padding, rank) * 2,
            dilations=spread(dilation, rank),
            ceil_mode=int(ceil_mode),
        )

    return write


def _avg_pool(rank: int) -> Callable[..., str]:
    def write(
        w: Writer,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> str:
        if divisor_override or input.ndim != rank + 2 or (ceil_mode and count_include_pad and any(spread(padding, rank))):
            raise NotWritten("avg_pool with divisor_override, without a batch dimension, or with padding and ceil_mode")
        return w.node(
            "AveragePool",
            [input.name],
            kernel_shape=spread(kernel_size, rank),
            strides=spread(stride if stride else kernel_size, rank),
            pads=spread(padding, rank) * 2,
            ceil_mode=int(ceil_mode),
            count_include_pad=int(count_include_pad),
        )

    return write


def _adaptive_pool(rank: int, kind: str) -> Callable[..., str]:
    def write(w: Writer, input: Value, output_size: Any, return_indices: bool = False) -> str:
        sizes = input.shape[-rank:]
        wanted = [size if want is None else want for size, want in zip(sizes, spread(output_size, rank), strict=True)]
        if all(isinstance(want, int) and want == 1 for want in wanted):
            return w.node(f"Global{kind}Pool", [input.name])
        numbers = [int(size) for size in sizes]  # other sizes need other kernels
        if any(size % int(want) for size, want in zip(numbers, wanted, strict=True)):
            return _uneven_pool(w, input, numbers, [int(want) for want in wanted], kind)
        kernel = [size // int(want) for size, want in zip(numbers, wanted, strict=True)]
        return (
            w.node(f"{kind}Pool", [input.name], kernel_shape=kernel, strides=kernel)
            if max(kernel) > 1
            else w.node("Identity", [input.name])
        )

    return write


def _uneven_pool(w: Writer, input: Value, sizes: list[int], wanted: list[int], kind: str) -> str:
    """Windows of several sizes: an average is a matrix product with 1 / window size along each axis in turn."""
    if kind != "Average":
        raise NotWritten("adaptive max pool to a size that does not divide its input")
    name, axes = input.name, list(range(input.ndim))
    for axis, (size, want) in enumerate(zip(sizes, wanted, strict=True), input.ndim - len(sizes)):
        matrix = F.adaptive_avg_pool1d(torch.eye(size).unsqueeze(0), want).squeeze(0)
        swapped = [axis if a == axes[-1] else axes[-1] if a == axis else a for a in axes]
        product = w.node("MatMul", [w.node("Transpose", [name], perm=swapped), w.constant(matrix)])
        name = w.node("Transpose", [product], perm=swapped)
    return name


# ---- normalisation


def _batch_norm(
    w: Writer,
    input: Value,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> str:
    if training or running_mean is None:
        raise NotWritten("batch norm with the statistics of the batch")
    ones, zeros = torch.ones_like(running_var), torch.zeros_like(running_mean)
    tensors = (ones if weight is None else weight, zeros if bias is None else bias, running_mean, running_var)
    return w.node("BatchNormalization", [input.name, *map(w.name_of, tensors)], epsilon=eps)


def _layer_norm(w: Writer, input: Value, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> str:
    scale = torch.ones(tuple(normalized_shape)) if weight is None else weight
    operands = [input.name, w.name_of(scale), *([w.name_of(bias)] if bias is not None else [])]
    return w.node("LayerNormalization", operands, axis=-len(normalized_shape), epsilon=eps)


@composite
def _group_norm(input: Value, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    flat = F.instance_norm(input.reshape(input.shape[0], num_groups, -1), eps=eps).reshape(input.shape)
    return _affine(flat, weight, bias)


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    ones = [1] * (x.ndim - 2)
    x = x if weight is None else x * weight.detach().reshape(-1, *ones)
    return x if bias is None else x + bias.detach().reshape(-1, *ones)


def _instance_norm(
    w: Writer,
    input: Value,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> str:
    if not use_input_stats:
        return _batch_norm(w, input, running_mean, running_var, weight, bias, eps=eps)
    channels = int(input.shape[1])
    scale = torch.ones(channels) if weight is None else weight
    shift = torch.zeros(channels) if bias is None else bias
    return w.node("InstanceNormalization", [input.name, w.name_of(scale), w.name_of(shift)], epsilon=eps)


@composite
def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    axes = tuple(range(-len(normalized_shape), 0))
    epsilon = torch.finfo(input.dtype).eps if eps is None else eps
    scaled = input * ((input * input).mean(axes, True) + epsilon).rsqrt()
    return scaled if weight is None else scaled * weight


@composite
def _normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if p != 2.0:
        raise NotWritten("normalize with p other than 2")
    return input / (input * input).sum(dim, True).sqrt().clamp(min=eps)


def _local_response_norm(w: Writer, input: Value, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> str:
    return w.node("LRN", [input.name], size=size, alpha=alpha, beta=beta, bias=k)


def layers() -> Table:
    """Writers of what has weights or windows."""
    table: Table = {}
    table |= {"linear": _linear, "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "addmm": _addmm, "baddbmm": _addmm, "einsum": _einsum}
    table |= {"rmatmul": lambda w, x, y: _matmul(w, y, x)}
    table |= {"scaled_dot_product_attention": _attention, "multi_head_attention_forward": _multi_head_attention}
    table |= {f"conv{r}d": _conv(r) for r in (1, 2, 3)} | {f"conv_transpose{r}d": _conv_transpose(r) for r in (1, 2, 3)}
    table |= {f"max_pool{r}d": _max_pool(r) for r in (1, 2, 3)} | {f"avg_pool{r}d": _avg_pool(r) for r in (1, 2, 3)}
    table |= {f"adaptive_avg_pool{r}d": _adaptive_pool(r, "Average") for r in (1, 2, 3)}
    table |= {f"adaptive_max_pool{r}d": _adaptive_pool(r, "Max") for r in (1, 2, 3)}
    table |= {"batch_norm": _batch_norm, "layer_norm": _layer_norm, "group_norm": _group_norm, "instance_norm": _instance_norm}
    table |= {"rms_norm": _rms_norm, "normalize": _normalize, "local_response_norm": _local_response_norm}
    return table
