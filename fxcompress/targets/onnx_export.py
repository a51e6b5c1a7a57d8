"""A graph and its example inputs -> ONNX bytes that take other sizes too, in about the time of one forward pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxcompress.errors import TargetError
from fxcompress.targets.onnx_layers import layers
from fxcompress.targets.onnx_moves import moves
from fxcompress.targets.onnx_ops import operations
from fxcompress.targets.onnx_quant import after_moving, is_quantized, write_quantized
from fxcompress.targets.onnx_trace import OPSET, Writer, canonical_name, onnx_type
from fxcompress.targets.onnx_values import Dim, SizeDependent, Value
from fxcompress.targets.saturation import NOWHERE, Saturation

CONTRIB = "com.microsoft"  # ONNX Runtime's own operations


@dataclass(frozen=True)
class Axis:
    """Which sizes one axis of an input takes: ``size + k * step``; a step of 0 is a fixed size."""

    size: int
    step: int = 0

    def takes(self, size: int) -> bool:
        return size == self.size if self.step == 0 else size > 0 and (size - self.size) % self.step == 0

    def __str__(self) -> str:
        if self.step == 0:
            return str(self.size)
        return "any" if self.step == 1 else f"{self.size % self.step or self.step} + a multiple of {self.step}"


@dataclass(frozen=True)
class Exported:
    """ONNX bytes and the sizes that each input takes; inputs and outputs are in the order of the nodes given.

    ``wants_vnni``: on CPUs without it the engine's int8 products may saturate.
    """

    model: bytes
    axes: tuple[tuple[Axis, ...], ...]
    wants_vnni: bool = False


def export(
    gm: fx.GraphModule,
    inputs: Sequence[tuple[Node, torch.Tensor]],
    constants: Mapping[Node, Any],
    outputs: Sequence[Node],
    dialect: str,
    machine: Saturation = NOWHERE,
) -> Exported:
    """Write what lies between ``inputs`` and ``outputs`` of a graph.

    Args:
        gm: an eval-mode float32 graph on the CPU.
        inputs: the tensors that go in, with examples of them.
        constants: other nodes before the graph's computation, with the values they had in the example.
        outputs: the tensors that come out.
        dialect: "openvino" or "onnxruntime"; "onnx" for standard ONNX without any engine's own operations.
        machine: where products of int8 weights saturate; weights are made safe for it.

    Raises:
        TargetError: an operation has no form in ONNX.
    """
    examples = [example for _, example in inputs]
    last: Exception | None = None
    for plan in _plans(examples):
        try:
            writer = Writer(operations() | layers() | moves(), len(plan.points), dialect, machine)
            model = _write(writer, gm, inputs, constants, outputs, plan)
            return Exported(model, plan.axes, writer.wants_vnni)
        except SizeDependent as error:
            last = error
    raise TargetError(f"the graph cannot be written for an engine: {last}", hint="use target='cpu'") from last


# ---- which sizes are free


@dataclass(frozen=True)
class _Plan:
    axes: tuple[tuple[Axis, ...], ...]
    points: tuple[tuple[tuple[int, ...], ...], ...]  # point -> input -> sizes


def _plans(examples: Sequence[torch.Tensor]) -> Iterator[_Plan]:
    """From all sizes free to none; each is tried at sizes that have little in common with the example's."""
    seen: set[Any] = set()
    for inner, step in ((_image_axes, 1), (_image_axes, 32), (_token_axes, 1), (_no_axes, 1), (None, 0)):
        axes = tuple(_axes(example, inner, step) for example in examples)
        if axes not in seen:
            seen.add(axes)
            yield _Plan(axes, tuple(_point(axes, k) for k in range(1 if inner is None else 3)))


def _image_axes(shape: torch.Size) -> range:
    return range(2, len(shape))


def _token_axes(shape: torch.Size) -> range:
    return range(1, 2) if len(shape) < 4 else range(2, len(shape))


def _no_axes(shape: torch.Size) -> range:
    return range(0)


def _axes(example: torch.Tensor, inner: Callable[[torch.Size], range] | None, step: int) -> tuple[Axis, ...]:
    if inner is None:
        return tuple(Axis(size) for size in example.shape)
    free = inner(example.shape)
    return tuple(Axis(size, 1 if i == 0 else step if i in free else 0) for i, size in enumerate(example.shape))


def _point(axes: tuple[tuple[Axis, ...], ...], k: int) -> tuple[tuple[int, ...], ...]:
    def size(index: int, axis: Axis) -> int:
        if axis.step == 0 or k == 0:
            return axis.size
        return axis.size + k if index == 0 else axis.size + (32, 64 if axis.step > 1 else 37)[k - 1]

    return tuple(tuple(size(index, axis) for index, axis in enumerate(each)) for each in axes)


# ---- writing


def _write(
    writer: Writer,
    gm: fx.GraphModule,
    inputs: Sequence[tuple[Node, torch.Tensor]],
    constants: Mapping[Node, Any],
    outputs: Sequence[Node],
    plan: _Plan,
) -> bytes:
    env: dict[Node, Any] = dict(constants)
    for i, (node, example) in enumerate(inputs):
        metas = [torch.empty(point[i], dtype=example.dtype, device="meta") for point in plan.points]
        env[node] = Value(writer, f"input_{i}", metas)
    with torch.no_grad():
        for node in _needed(gm, outputs, env):
            env[node] = after_moving(writer, _run(writer, gm, node, env))
    names = [_output(writer, node, env[node], i) for i, node in enumerate(outputs)]
    return _serialise(writer, inputs, plan, [(name, env[node]) for name, node in zip(names, outputs, strict=True)])


def _needed(gm: fx.GraphModule, outputs: Sequence[Node], env: Mapping[Node, Any]) -> list[Node]:
    wanted: set[Node] = set()
    stack = [node for node in gm.graph.nodes if node not in env and (node in outputs or _writes_in_place(node))]
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack.extend(source for source in node.all_input_nodes if source not in env)
    return [node for node in gm.graph.nodes if node in wanted]


def _writes_in_place(node: Node) -> bool:
    """Whether the node has an effect even if nobody reads its result."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and (node.target in _IN_PLACE or (name.endswith("_") and not name.startswith("_")))


_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


def _run(writer: Writer, gm: fx.GraphModule, node: Node, env: Mapping[Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    try:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(gm)
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            return write_quantized(writer, gm, node, args, kwargs) if is_quantized(module) else module(*args, **kwargs)
        if node.op == "call_method":
            if isinstance(args[0], torch.Tensor):
                return _function(writer, getattr(torch.Tensor, str(node.target)), args, kwargs)
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return _function(writer, node.target, args, kwargs)
    except (SizeDependent, TargetError):
        raise
    except Exception as error:
        raise TargetError(
            f"node '{node.name}' has no form that an engine takes: {error}{_line(node)}",
            hint="use target='cpu', or replace this operation in the model",
        ) from error


def _function(writer: Writer, function: Any, args: Any, kwargs: Any) -> Any:
    recorded = any(isinstance(leaf, Value | Dim) for leaf in pytree.tree_leaves((args, kwargs)))
    is_torch = not isinstance(function, type) and str(getattr(function, "__module__", None) or "torch").startswith("torch")
    if recorded and is_torch and writer.knows(canonical_name(function)):
        return writer.call(function, args, kwargs)  # past torch's own argument check, which would read a Dim as a number
    return function(*args, **kwargs)


def _line(node: Node) -> str:
    lines = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines() if line.strip().startswith("File")]
    return f" ({lines[-1]})" if lines else ""


def _output(writer: Writer, node: Node, value: Any, index: int) -> str:
    if not isinstance(value, Value | torch.Tensor):
        raise TargetError(f"output '{node.name}' is {type(value).__name__}, not a tensor", hint="use target='cpu' for this model")
    name = f"output_{index}"
    writer.append("Identity", [writer.name_of(value)], [name])
    return name


def _serialise(writer: Writer, inputs: Sequence[tuple[Node, torch.Tensor]], plan: _Plan, outputs: Sequence[tuple[str, Any]]) -> bytes:
    helper = writer.onnx.helper
    infos = [
        helper.make_tensor_value_info(
            f"input_{i}", onnx_type(example.dtype), [axis.size if axis.step == 0 else f"d{i}_{k}" for k, axis in enumerate(axes)]
        )
        for i, ((_, example), axes) in enumerate(zip(inputs, plan.axes, strict=True))
    ]
    results = [helper.make_tensor_value_info(name, onnx_type(value.dtype), [None] * value.ndim) for name, value in outputs]
    model, graph = writer.proto, writer.graph
    graph.name = "fxcompress"
    graph.input.extend(infos)
    graph.output.extend(results)
    model.producer_name, model.ir_version = "fxcompress", 9
    for domain in sorted({"", *(node.domain for node in graph.node)}):
        model.opset_import.add(domain=domain, version=1 if domain == CONTRIB else OPSET)
    try:
        return bytes(model.SerializeToString())
    except ValueError as error:  # protobuf holds 2 GiB
        raise TargetError(f"the model is too large for one ONNX file: {error}", hint="use target='cpu'") from error
