"""Step 2 of the ladder: the graph of torch.export, raised back to modules and torch functions."""

from __future__ import annotations

import inspect
import io
import warnings
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from fxcompress.capture.assemble import assemble
from fxcompress.capture.check import other_batch, run
from fxcompress.capture.location import where_raised
from fxcompress.capture.raising import Raised, dropped, out_of_place, raised
from fxcompress.capture.signature import output_argument, shadows
from fxcompress.capture.step import StepFailed
from fxcompress.ir.inputs import Inputs

_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "UserError", "DataDependentOutputException", "DynamicOutputShapeException")


def export(root: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """``torch.export`` of ``root`` with dynamic batch and image sizes (where it can), in the dialect of the library.

    Raises:
        StepFailed: the export fails, or its graph holds something without a form in the dialect.
    """
    program = _exported(root, _roomy(root, _ordered(root, inputs)))
    if _writes_through_views(program.graph):
        program = program.run_decompositions({})  # functional, at the price of coarser operations taken apart
    return _Raiser(root, program, inputs).graph_module()


def _ordered(root: nn.Module, inputs: Inputs) -> Inputs:
    order = list(inspect.signature(root.forward).parameters)
    known = sorted(inputs.kwargs, key=lambda k: order.index(k) if k in order else len(order))
    return Inputs(inputs.args, {k: inputs.kwargs[k] for k in known})


def _roomy(root: nn.Module, inputs: Inputs) -> Inputs:
    """A batch of two where the example has one: torch.export takes a size of one for a constant."""
    tensors = [t for t in inputs.tensors() if t.dim() >= 2]
    larger = other_batch(inputs) if tensors and tensors[0].size(0) == 1 else None
    if larger is None:
        return inputs
    try:
        run(root, larger)
    except Exception:  # the model takes single examples only
        return inputs
    return larger


def _exported(root: nn.Module, inputs: Inputs) -> ExportedProgram:
    batch = next((t.size(0) for t in inputs.tensors() if t.dim() >= 2), None)

    def dims(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return None
        free = {0: Dim.AUTO} if tensor.dim() and tensor.size(0) == batch else {}
        if tensor.dim() == 4 and tensor.is_floating_point():
            free |= {2: Dim.AUTO, 3: Dim.AUTO}
        return free

    try:
        with warnings.catch_warnings(), torch.no_grad(), redirect_stderr(io.StringIO()):  # it prints whole graphs when it fails
            warnings.simplefilter("ignore")  # export's own remarks; what matters is checked on its graph
            shapes = _dynamic_shapes(root, inputs, dims)
            return torch.export.export(root, tuple(inputs.args), dict(inputs.kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises many kinds of errors for what it does not support
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0] if text else ''}"
        raise StepFailed(reason, where_raised(error.__traceback__), data_dependent=type(error).__name__ in _DATA_DEPENDENT) from error


def _dynamic_shapes(root: nn.Module, inputs: Inputs, dims: Any) -> Any:
    bound = inspect.signature(root.forward).bind(*inputs.args, **inputs.kwargs).arguments
    variadic = {p.name: p.kind for p in inspect.signature(root.forward).parameters.values()}
    shapes: dict[str, Any] = {}
    for name, value in bound.items():
        spec = pytree.tree_map(dims, value)
        if variadic[name] is inspect.Parameter.VAR_KEYWORD:
            shapes.update(spec)
        else:
            shapes[name] = spec
    return shapes


def _in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not schema.name.startswith("aten::batch_norm")


def _writes_through_views(graph: fx.Graph) -> bool:
    """Whether an in-place operation writes memory that an earlier view shares, or an input, or has no out-of-place form."""
    home: dict[fx.Node, fx.Node] = {}
    views: dict[fx.Node, int] = {}
    for node in graph.nodes:
        home[node] = node
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        if _in_place(node):
            if out_of_place(node) is None:
                return True
            home[node] = home[node.args[0]]
            if views.get(home[node], 0) or home[node].op == "placeholder":
                return True
        elif any(returned.alias_info is not None for returned in schema.returns):
            home[node] = home[node.args[0]]
            views[home[node]] = views.get(home[node], 0) + 1
    return False


class _Raiser:
    """Copies the exported graph node by node into the dialect."""

    def __init__(self, root: nn.Module, program: ExportedProgram, inputs: Inputs) -> None:
        self.root, self.program, self.inputs = root, program, inputs
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        self.ranks: dict[fx.Node, int] = {}
        self.constants: dict[str, Tensor] = {}

    def graph_module(self) -> fx.GraphModule:
        self._inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function" and not dropped(node):
                self._call(node)
            elif node.op == "get_attr":
                raise StepFailed(f"the exported graph calls a graph of its own ({node.target})", _where(node))
        self._output()
        for made in reversed(list(self.graph.nodes)):
            if not made.users and made.op not in ("placeholder", "output") and not made.is_impure(False):
                self.graph.erase_node(made)
        return assemble(self.root, self.graph, self.constants, self.ranks)

    def _inputs(self) -> None:
        args, kwargs = shadows(self.graph, self.root.forward, _ordered(self.root, self.inputs), lambda _, node: node)
        user = iter(pytree.tree_leaves((args, kwargs)))
        placeholders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                self._remember(node, next(user))
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                self._remember(node, self.graph.create_node("get_attr", self._attribute(str(spec.target), spec.kind)))
            else:
                raise StepFailed(f"the exported graph takes a {spec.kind.name.lower()}")

    def _attribute(self, path: str, kind: InputKind) -> str:
        if kind is not InputKind.CONSTANT_TENSOR:
            return path
        value = self.program.constants[path]
        name = path if "." not in path and not hasattr(self.root, path) else f"_tensor_constant{len(self.constants)}"
        self.constants[name] = value.detach().clone()
        return name

    def _remember(self, old: fx.Node, new: Any) -> None:
        self.nodes[old] = new
        value = old.meta.get("val")
        if isinstance(value, Tensor) and isinstance(new, fx.Node):
            self.ranks[new] = value.dim()

    def _call(self, node: fx.Node) -> None:
        args = fx.node.map_arg(node.args, lambda n: self.nodes[n])
        kwargs = fx.node.map_arg(dict(node.kwargs), lambda n: self.nodes[n])
        form: Raised = raised(node, args, dict(kwargs))
        if _in_place(node) and isinstance(node.args[0], fx.Node):
            written = [old for old, new in self.nodes.items() if new is args[0]]
        else:
            written = []
        if form.op == "same":
            self._remember(node, form.args[0])
            return
        made = self.graph.create_node(form.op, form.target, form.args, form.kwargs)
        for key in ("stack_trace", "nn_module_stack"):
            if key in node.meta:
                made.meta[key] = node.meta[key]
        for old in (*written, node):  # later readers of what was overwritten see the new value
            self._remember(old, made)

    def _output(self) -> None:
        specs = self.program.graph_signature.output_specs
        (flat,) = next(n for n in self.program.graph.nodes if n.op == "output").args
        values = []
        for spec, value in zip(specs, flat, strict=True):
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise StepFailed("the exported graph changes a buffer or an input of the model")
            values.append(spec.arg.value if isinstance(spec.arg, ConstantArgument) else self.nodes.get(value, value))
        nested = pytree.tree_unflatten(values, self.program.call_spec.out_spec)
        self.graph.output(output_argument(self.graph, nested, lambda v: v))


def _where(node: fx.Node) -> str | None:
    frames = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines() if line.strip().startswith("File ")]
    if not frames:
        return None
    parts = frames[-1].split('"')
    return f"{parts[1]}:{frames[-1].split('line ')[-1].split(',')[0]}"
