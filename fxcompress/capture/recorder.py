"""Recording of a forward run into a torch.fx graph.

The model runs once, in plain Python, on fake tensors (shapes without data) made from the example inputs. A torch
function mode sees every torch operation before it runs and writes it down; leaf modules become one node. Because the
values are tensors to the user's code, ``isinstance``, ``len``, loops over chunks and branches on shapes simply work.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import base_types
from torch.overrides import TorchFunctionMode

from fxcompress.capture import fixed
from fxcompress.capture.location import user_stack
from fxcompress.capture.sizes import Traced, is_traced, plain, traced
from fxcompress.capture.step import StepFailed
from fxcompress.capture.targets import STATIC, property_name, writes_in_place, written
from fxcompress.ir.layer_shapes import quick_concat, quick_result

_CONSTANT_TYPES = (*base_types, type(None), type(...), range)
# operations whose number of results (or plain result) follows a size, so that a loop over it is unrolled for the example
_COUNTS = frozenset({"__len__", "unbind", "split", "chunk", "tensor_split", "stride", "nbytes", "hsplit", "vsplit", "split_with_sizes"})


class Recorder(TorchFunctionMode):
    """Writes the torch calls made while it is active into ``graph``."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.graph = fx.Graph()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.decisions: dict[str, None] = {}
        self.module_stack: dict[str, tuple[str, Any]] = {}
        self.constants: dict[str, Tensor] = {}
        self.ranks: dict[fx.Node, int] = {}
        self.fixed: dict[int, frozenset[int]] = {}
        self.looked = False
        self.memory: dict[fx.Node, int] = {}
        self.same_dtype: set[fx.Node] = set()
        self._paused = 0
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []
        self._computed: dict[Any, fx.Node] = {}
        self._sizes: dict[tuple[fx.Node, int], Any] = {}
        self._attributes = _tensor_names(root)
        self._alive.append(list(self._attributes.values()))

    # -- nodes ------------------------------------------------------------------------------------------------------

    def emit(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None) -> fx.Node:
        """Append a node; arguments are values of the traced program."""
        if name is None and op == "call_method":
            name = target.strip("_")
        node = self.graph.create_node(op, target, self.argument(args), self.argument(kwargs), name)
        with self.paused():
            stack = user_stack()
        if stack:
            node.meta["stack_trace"] = stack
        if self.module_stack:
            node.meta["nn_module_stack"] = self.module_stack
        return node

    def input(self, value: Tensor, node: fx.Node) -> Tensor:
        """The shadow of an example input, which ``node`` stands for."""
        shadow = self.fake.from_tensor(value)
        self.bind(shadow, node)
        return shadow

    def bind(self, value: Any, node: fx.Node) -> None:
        """Remember that ``value`` (a tensor, or a nest of them) is what ``node`` computes."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._alive.append(value)
            self.memory[node] = value.untyped_storage()._cdata
            self.ranks[node] = value.dim()
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                if _has_tensor(item):
                    self.bind(item, self.emit("call_function", operator.getitem, (node, index), {}))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if _has_tensor(item):
                    self.bind(item, self.emit("call_function", operator.getitem, (node, key), {}))

    def argument(self, value: Any) -> Any:
        """The fx form of a value of the traced program.

        Raises:
            StepFailed: the value cannot stand in a graph.
        """
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, Traced):
            return value.node()
        if isinstance(value, Tensor):
            return self._tensor_node(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.argument(v) for v in value))
        if isinstance(value, tuple):
            return tuple(self.argument(v) for v in value)
        if isinstance(value, list):
            return [self.argument(v) for v in value]
        if isinstance(value, dict):
            return {k: self.argument(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self.argument(value.start), self.argument(value.stop), self.argument(value.step))
        if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            return value.item()
        if isinstance(value, _CONSTANT_TYPES):
            return value
        raise StepFailed(f"an argument of type {type(value).__name__} cannot stand in a graph")

    def _tensor_node(self, value: Tensor) -> fx.Node:
        node = self._nodes.get(id(value))
        if node is None:
            if isinstance(value, FakeTensor):
                raise StepFailed("a tensor comes from code that torch cannot intercept (a custom autograd function or C++ extension)")
            path = self._attributes.get(id(value), (None, None))[0]
            if path is None:
                path = f"_tensor_constant{len(self.constants)}"
                self.constants[path] = value.detach().clone()
            node = self.graph.create_node("get_attr", path)
            self.bind(value, node)
        return node

    def node_of(self, value: Tensor) -> fx.Node | None:
        return self._nodes.get(id(value))

    def compute(self, fn: Any, args: tuple[Any, ...]) -> fx.Node:
        """The node of ``fn`` on traced numbers; the same computation is written once."""
        arguments = self.argument(args)
        key = (fn, arguments, tuple(map(type, arguments)))
        if key not in self._computed:
            self._computed[key] = self.emit("call_function", fn, arguments, {})
        return self._computed[key]

    # -- calls ------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        with self.paused():
            return self._call(func, args, kwargs)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = property_name(func) or getattr(func, "__name__", "")
        if name in ("shape", "size", "numel", "nelement"):
            return self._size(name, func, args, kwargs)
        result = self.evaluate(func, args, kwargs)
        self.looked = self.looked or name in _COUNTS
        if name in STATIC:
            return result
        op, target, args, kwargs = written(func, args, kwargs)
        if writes_in_place(op, target, kwargs):
            node = self.emit(op, target, args, kwargs)
            if _keeps_dtype(args):
                self.same_dtype.add(node)
            if result is not None:
                self.bind(result, node)
            return result
        if not _has_tensor(result):
            return result
        result = _fresh(result, args, kwargs)
        self.bind(result, self.emit(op, target, args, kwargs))
        self._fix(result, fixed.of_call(target, args, kwargs, result, self._fixed_dims))
        return result

    def _fixed_dims(self, tensor: Tensor) -> frozenset[int]:
        if not isinstance(tensor, FakeTensor):
            return frozenset(range(tensor.dim()))
        return self.fixed.get(id(tensor), fixed.NONE)

    def _fix(self, result: Any, dims: Any) -> None:
        if isinstance(result, FakeTensor) and isinstance(dims, frozenset):
            self.fixed[id(result)] = dims
        elif isinstance(result, (tuple, list)) and isinstance(dims, list):
            for part, own in zip(result, dims, strict=True):
                self._fix(part, own)

    def evaluate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` on the shadows: fake when an input of the model or its size takes part, real for constants."""
        args, kwargs, fake = bare(args, kwargs)
        if not fake:
            return func(*args, **kwargs)
        with self.fake:
            found = _concatenated(args, kwargs) if func is torch.cat else None
            return func(*args, **kwargs) if found is None else found

    def _size(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = func(*args, **kwargs)
        tensor = args[0]
        if not isinstance(tensor, FakeTensor):
            return value
        if name in ("numel", "nelement"):
            self.looked = True
            return traced(value, self, lambda: self.emit("call_method", "numel", (tensor,), {}))
        if isinstance(value, int):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return self._dimension(tensor, plain(dim) % tensor.dim(), value)
        return torch.Size([self._dimension(tensor, d, v) for d, v in enumerate(value)])

    def _dimension(self, tensor: Tensor, dim: int, value: int) -> Any:
        if dim in self._fixed_dims(tensor):
            return value
        self.looked = True
        key = (self._tensor_node(tensor), dim)
        if key not in self._sizes:
            self._sizes[key] = traced(value, self, lambda: self.emit("call_method", "size", (key[0], dim), {}))
        return self._sizes[key]

    def leaf(self, path: str, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the call of a leaf module as one node."""
        if self._paused:
            return forward(*args, **kwargs)
        with self.paused():
            result = _fresh(self._run_leaf(module, forward, args, kwargs), args, kwargs, alias=not getattr(module, "inplace", False))
            self.bind(result, self.emit("call_module", path, args, kwargs))
            self._fix(result, fixed.of_module(module, args, result, self._fixed_dims))
            return result

    def _run_leaf(self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], FakeTensor):
            with self.fake:
                result = quick_result(module, args[0])
            if result is not None:
                return result
        with torch._C.DisableTorchFunction():
            return self.evaluate(forward, args, kwargs)

    # -- state ------------------------------------------------------------------------------------------------------

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is recorded inside."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    @contextmanager
    def inside(self, path: str, kind: type[nn.Module]) -> Iterator[None]:
        """Nodes made inside belong to the submodule ``path``."""
        previous = self.module_stack
        self.module_stack = {**previous, path: (path, kind)}
        try:
            yield
        finally:
            self.module_stack = previous

    def decided(self) -> None:
        """A branch of the user's code was taken by the value of a size."""
        if self._paused:
            return
        with self.paused():
            where = user_stack(innermost=True)
        if where:
            self.decisions.setdefault(where, None)


def bare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    """Arguments with bare numbers for traced ones, and whether any of them depends on the inputs."""
    dependent = False

    def visit(value: Any) -> Any:
        nonlocal dependent
        if isinstance(value, Tensor):
            dependent = dependent or isinstance(value, FakeTensor)
            return value
        if is_traced(value):
            dependent = True
            return plain(value)
        kind = type(value)
        if kind is torch.Size:
            return torch.Size([visit(v) for v in value])
        if kind is tuple or kind is list:
            return kind([visit(v) for v in value])
        if kind is dict:
            return {k: visit(v) for k, v in value.items()}
        if kind is slice:
            return slice(visit(value.start), visit(value.stop), visit(value.step))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return kind(*(visit(v) for v in value))
        return value

    return tuple(visit(a) for a in args), {k: visit(v) for k, v in kwargs.items()}, dependent


def _concatenated(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What ``torch.cat(*args, **kwargs)`` gives, where that can be had without asking torch."""
    tensors, dim = args[0] if args else None, args[1] if len(args) == 2 else kwargs.get("dim", 0)
    simple = isinstance(tensors, (list, tuple)) and len(args) <= 2 and set(kwargs) <= {"dim"} and type(dim) is int
    if not simple or not tensors or not all(isinstance(t, FakeTensor) for t in tensors):
        return None
    return quick_concat(tensors, dim)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (tuple, list)):
        return any(map(_has_tensor, value))
    return isinstance(value, Mapping) and any(map(_has_tensor, value.values()))


def _fresh(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], alias: bool = True) -> Any:
    """``result``, as a new object when the operation only returned its argument (``x.contiguous()``, dropout in eval)."""
    if alias and isinstance(result, Tensor) and any(result is a for a in (*args, *kwargs.values())):
        return result.view_as(result) if isinstance(result, FakeTensor) or not result.requires_grad else result.detach()
    return result


def _keeps_dtype(args: tuple[Any, ...]) -> bool:
    """Whether ``a op b`` has the dtype and the shape of ``a``, so that writing it in place changed nothing else."""
    target, *others = args
    if not isinstance(target, Tensor):
        return False
    return all(torch.result_type(target, other) == target.dtype for other in others if isinstance(other, (Tensor, int, float)))


def _tensor_names(root: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Parameters, buffers and plain tensor attributes of all modules, by identity."""
    names: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in root.named_modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            for key, value in table.items():
                if isinstance(value, Tensor):
                    names.setdefault(id(value), (f"{prefix}.{key}" if prefix else key, value))
    return names
