"""Whole-graph engines: the module that holds an engine's file, and the graph around it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import operator
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxcompress.errors import InputError, ModeError, TargetError
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.inputs import Inputs
from fxcompress.targets.inference import InferenceOnly
from fxcompress.targets.onnx_export import Axis, Exported, export
from fxcompress.targets.saturation import NOWHERE, saturation

INSTALL = "pip install fxcompress[engines]"

# engine -> (module, class) of its runner; imported when a network runs, so that a saved file names only these
_RUNNERS = {
    "openvino": ("fxcompress.targets.openvino", "OpenVinoRunner"),
    "onnxruntime": ("fxcompress.targets.onnxruntime", "OnnxRuntimeRunner"),
}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool)
}


class Runner(Protocol):
    """An engine with one network, compiled for what it is called with."""

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Contiguous tensors in, fresh tensors out."""
        ...


@dataclass(frozen=True)
class Port:
    """One input of a network: its name in the user's forward, its dtype, and the sizes that it takes."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]

    def check(self, tensor: Any) -> None:
        """Raises InputError where ``tensor`` does not fit."""
        if not isinstance(tensor, Tensor):
            raise InputError(f"input '{self.name}' is {type(tensor).__name__}, not a tensor", hint=f"pass a {self} tensor")
        fits = tensor.dim() == len(self.axes) and all(axis.takes(size) for axis, size in zip(self.axes, tensor.shape, strict=True))
        if not fits:
            raise InputError(
                f"input '{self.name}' has shape {tuple(tensor.shape)}; this engine takes {self}",
                hint="compress the model with an example of this shape, or use target='cpu'",
            )
        if tensor.dtype != _DTYPES[self.dtype]:
            raise InputError(
                f"input '{self.name}' is {tensor.dtype}; this engine takes {self.dtype}", hint=f"call it with .to(torch.{self.dtype})"
            )
        if tensor.device.type != "cpu":
            raise InputError(f"input '{self.name}' is on {tensor.device}; this engine runs on the CPU", hint="call it with .cpu()")

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.axes))})"


class EngineModule(InferenceOnly):
    """A network that an engine runs: tensors in, a tuple of fresh tensors out.

    It holds the engine's file as bytes and is compiled when it is first called, so it can be deep-copied, pickled and
    stored (:meth:`state`, :meth:`from_state`). It is float32, on the CPU, and for inference only.

    Args:
        engine: "openvino" or "onnxruntime".
        model: the network as ONNX.
        ports: its inputs.
        threads: how many threads it computes with; None is ``torch.get_num_threads()`` at the first call.
        wants_vnni: whether its int8 products may saturate on CPUs without VNNI; there it refuses to run.
    """

    def __init__(self, engine: str, model: bytes, ports: tuple[Port, ...], threads: int | None = None, wants_vnni: bool = False) -> None:
        super().__init__()
        if engine not in _RUNNERS:
            raise TargetError(f"unknown engine '{engine}'", hint=f"known are {', '.join(_RUNNERS)}")
        self.engine, self.model, self.ports = engine, model, ports
        self._threads, self.wants_vnni = _checked_threads(threads), wants_vnni
        self._runner: Runner | None = None
        self._lock = threading.Lock()
        self.training = False

    @property
    def threads(self) -> int | None:
        """How many threads the engine computes with; setting it compiles again at the next call."""
        return self._threads

    @threads.setter
    def threads(self, threads: int | None) -> None:
        self._threads, self._runner = _checked_threads(threads), None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the network.

        Raises:
            InputError: number, shape, dtype or device of the tensors do not fit.
            ModeError: an input requires a gradient.
            TargetError: the engine is not installed or refuses the network.
        """
        if len(tensors) != len(self.ports):
            raise InputError(f"the network has {len(self.ports)} inputs; this call passes {len(tensors)}", hint="pass all of them")
        for port, tensor in zip(self.ports, tensors, strict=True):
            port.check(tensor)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise ModeError("an engine computes no gradients", hint="call it under torch.no_grad(), or use the model before it was lowered")
        with self._lock:
            if self._runner is None:
                _check_exact(self.wants_vnni)
                self._runner = _make_runner(self.engine, self.model, self._threads or torch.get_num_threads())
            return self._runner([tensor.detach().contiguous() for tensor in tensors])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32 or probe.device.type != "cpu":
            raise TargetError(
                f"a network in an engine stays float32 on the CPU; asked for {probe.dtype} on {probe.device}",
                hint="convert the original model and lower it to a target that runs there",
            )
        return self

    def state(self) -> dict[str, str | int | bytes]:
        """All that is needed to build it again, as plain data. ``threads`` is 0 where it follows torch."""
        ports = json.dumps([asdict(port) for port in self.ports])
        return {
            "engine": self.engine,
            "threads": self._threads or 0,
            "wants_vnni": int(self.wants_vnni),
            "ports": ports,
            "model": self.model,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The module that :meth:`state` describes; the engine need not be installed.

        Raises:
            TargetError: the state is not one of this class.
        """
        try:
            described = json.loads(state["ports"])
            ports = tuple(
                Port(str(p["name"]), p["dtype"], tuple(Axis(int(a["size"]), int(a["step"])) for a in p["axes"])) for p in described
            )
            engine, model, threads = str(state["engine"]), state["model"], int(state["threads"])
            wants_vnni = bool(state.get("wants_vnni", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(f"this is not the state of an engine module: {error!r}", hint="save the model again") from error
        if not isinstance(model, bytes) or any(port.dtype not in _DTYPES for port in ports):
            raise TargetError("this is not the state of an engine module", hint="save the model again")
        return cls(engine, model, ports, threads or None, wants_vnni)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_runner", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._runner, self._lock = None, threading.Lock()

    def extra_repr(self) -> str:
        return (
            f"{self.engine}, {len(self.model) / 1e6:.1f} MB, threads={self._threads or 'torch'}, inputs=[{', '.join(map(str, self.ports))}]"
        )


def _checked_threads(threads: int | None) -> int | None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r} is not a number of threads", hint="pass 1 or more, or None for torch.get_num_threads()")
    return threads


def _check_exact(wants_vnni: bool) -> None:
    """Raises TargetError where int8 weights made for a CPU with VNNI would give wrong numbers."""
    found = saturation() if wants_vnni else NOWHERE
    if found.pairs or found.taps:
        raise TargetError(
            "this CPU has no VNNI, and on it products of these int8 weights saturate",
            hint='lower the model on this machine, or put the pass "safe-weights{machine=any}" before lowering',
        )


def _make_runner(engine: str, model: bytes, threads: int) -> Runner:
    module, name = _RUNNERS[engine]
    _refuse_external_data(model)
    runner: Runner = getattr(importlib.import_module(module), name)(model, threads)
    return runner


def _refuse_external_data(model: bytes) -> None:
    """ONNX may name other files for its tensors; ours never does, so one that does is not ours.

    Raises:
        TargetError: a tensor lies outside, the bytes are no ONNX, or the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise TargetError("onnx is not installed", hint=INSTALL) from error
    try:
        network = onnx.load_model_from_string(model)
    except Exception as error:  # the parser's exceptions share no base class
        raise TargetError(f"the network is damaged: {error}", hint="save the model again") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in network.graph.initializer):
        raise TargetError("the network reads its weights from other files, which ours never does", hint="do not use this file")


# ---- the targets


@dataclass(frozen=True)
class EngineTarget:
    """A target that hands whole graphs to the engine ``name``, which needs ``packages``.

    Args:
        threads: how many threads it computes with; None follows ``torch.get_num_threads()``.
    """

    threads: int | None = None
    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    def missing(self) -> str | None:
        """See :class:`fxcompress.targets.base.Target`."""
        lacking = next((package for package in self.packages if importlib.util.find_spec(package) is None), None)
        return None if lacking is None else f"{lacking} is not installed: {INSTALL}"

    def lower(self, gm: fx.GraphModule, inputs: Inputs) -> fx.GraphModule:
        """See :class:`fxcompress.targets.base.Target`."""
        lacking = self.missing()
        if lacking:
            raise TargetError(f"target '{self.name}' cannot be used: {lacking}", hint=INSTALL)
        return lower_to_engine(gm, inputs, self.name, self.threads)


# ---- the graph around the module


def lower_to_engine(gm: fx.GraphModule, inputs: Inputs, engine: str, threads: int | None) -> fx.GraphModule:
    """A GraphModule with the placeholders, guards and output structure of ``gm`` around one :class:`EngineModule`.

    Raises:
        TargetError: the graph is not float32 on the CPU, or holds something that has no form in the engine.
    """
    _check_floats(gm, inputs)
    region = _input_region(gm, inputs)
    structure, leaves = _output_structure(gm)
    computed = [node for node in leaves if node not in region]
    if not computed:
        raise TargetError("the graph computes nothing", hint="use target='cpu'")
    used = [node for node in region if any(user not in region and user not in structure for user in node.users)]
    tensors = [(node, region[node]) for node in used if isinstance(region[node], Tensor)]
    exported = export(gm, tensors, region, computed, engine, saturation())
    module = EngineModule(engine, exported.model, _ports(tensors, exported), threads, exported.wants_vnni)
    return _wrap(gm, module, region, [node for node, _ in tensors], computed, structure)


def _check_floats(gm: fx.GraphModule, inputs: Inputs) -> None:
    tensors = [*gm.parameters(), *gm.buffers(), *inputs.tensors()]
    for tensor in tensors:
        wrong_float = (tensor.dtype.is_floating_point or tensor.dtype.is_complex) and tensor.dtype != torch.float32
        if wrong_float or tensor.device.type != "cpu":
            raise TargetError(
                f"engines run float32 on the CPU; this model has a {tensor.dtype} tensor on {tensor.device}",
                hint="convert model and inputs with .float().cpu(), or use target='cpu'",
            )


def _input_region(gm: fx.GraphModule, inputs: Inputs) -> dict[Node, Any]:
    """What stands before the computation, with its example values: placeholders, parts of nested inputs, guards."""
    bound = inspect.signature(gm.forward).bind(*inputs.args, **inputs.kwargs)
    bound.apply_defaults()
    region: dict[Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            region[node] = bound.arguments[str(node.target).lstrip("*")]
        elif node.op == "call_function" and all(source in region for source in node.all_input_nodes):
            if node.target is expect_constant:
                region[node] = None
            elif node.target is operator.getitem and node.all_input_nodes and not isinstance(region[node.args[0]], Tensor):
                region[node] = region[node.args[0]][node.args[1]]
    return region


def _output_structure(gm: fx.GraphModule) -> tuple[set[Node], list[Node]]:
    """Nodes that only give the output its form (the output node, calls of classes), and the nodes that they hold."""
    output = next(node for node in gm.graph.nodes if node.op == "output")
    structure, leaves, stack = {output}, [], list(output.all_input_nodes)
    while stack:
        node = stack.pop(0)
        if node.op == "call_function" and isinstance(node.target, type):
            structure.add(node)
            stack = [*node.all_input_nodes, *stack]
        elif node not in leaves:
            leaves.append(node)
    return structure, leaves


def _ports(tensors: list[tuple[Node, Tensor]], exported: Exported) -> tuple[Port, ...]:
    pairs = zip(tensors, exported.axes, strict=True)
    return tuple(Port(node.name, str(example.dtype).removeprefix("torch."), axes) for (node, example), axes in pairs)


def _wrap(
    gm: fx.GraphModule, module: EngineModule, region: Mapping[Node, Any], tensors: list[Node], computed: list[Node], structure: set[Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[Node, Node] = {}
    for node in region:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if _needs_guard(node, region, structure):
            graph.call_function(expect_constant, (copies[node], region[node], node.name))
    engine = graph.call_module("engine", tuple(copies[node] for node in tensors))
    for index, node in enumerate(computed):
        copies[node] = graph.call_function(operator.getitem, (engine, index))
        copies[node].meta = dict(node.meta)
    for node in gm.graph.nodes:
        if node in structure:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    root = nn.Module()
    root.add_module("engine", module)
    lowered = fx.GraphModule(root, graph, gm.__class__.__name__)
    lowered.meta.update(gm.meta)
    return lowered.eval()


def _needs_guard(node: Node, region: Mapping[Node, Any], structure: set[Node]) -> bool:
    """A number or None that the computation has taken as constant must not be passed otherwise."""
    if isinstance(region[node], Tensor | tuple | list | dict) or node.target is expect_constant:
        return False
    outside = [user for user in node.users if user not in region and user not in structure]
    return bool(outside) and not any(user.target is expect_constant for user in node.users)
