"""Modules as records of plain data, and back, without running a line of the modules' own code on saving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxcompress.errors import ArchiveError, FxCompressError
from fxcompress.storage import quantized
from fxcompress.storage.classes import BASE_ATTRIBUTES, Allowed, Form, Layout
from fxcompress.storage.tensors import TensorWriter
from fxcompress.storage.values import damaged, decode, encode, is_atom, is_path

Tensors = dict[str, tuple[str, Tensor | None]]
"""Name -> what kind of member it is, and the tensor."""

GRAPH_MODULE = "torch.fx.GraphModule"
CONTAINER = "torch.nn.Module"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_KINDS = ("parameter", "buffer", "temporary", "constant", "bytes")


def called_modules(module: GraphModule) -> set[nn.Module]:
    """The modules whose forward runs: the targets of call_module nodes and all below them."""
    targets = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    return {inner for target in targets for inner in module.get_submodule(target).modules()}


class ModuleWriter:
    """Turns the modules of a graph into records, parents before children."""

    def __init__(self, allowed: Allowed, tensors: TensorWriter) -> None:
        self.records: list[dict[str, Any]] = []
        self.graphs: dict[str, GraphModule] = {}
        self._allowed = allowed
        self._tensors = tensors
        self._paths: dict[nn.Module, str] = {}

    def add(self, path: str, module: nn.Module, called: frozenset[nn.Module] | set[nn.Module] = frozenset()) -> None:
        """Record ``module`` and all below it; ``called`` are the modules that a graph above it runs.

        Raises:
            ArchiveError: one of them cannot be stored.
        """
        if module in self._paths:
            self.records.append({"path": path, "same_as": self._paths[module]})
            return
        self._paths[module] = path
        self.records.append(self._record(path, module, module in called or path == ""))
        if isinstance(module, GraphModule):
            self.graphs[path] = module
            called = called | called_modules(module)
        for name, child in module._modules.items():
            if not is_atom(name):
                raise ArchiveError(f"module '{path}' has a child called {name!r}", hint="use letters, digits, '_' and '-' in module names")
            if child is not None:
                self.add(f"{path}.{name}" if path else name, child, called)

    def _record(self, path: str, module: nn.Module, runs: bool) -> dict[str, Any]:
        name = GRAPH_MODULE if isinstance(module, GraphModule) else self._allowed.class_name(type(module))
        if runs:
            _refuse_hooks(path, module)
        if name is None:
            if runs:
                raise _unknown_class(path, module)
            name = CONTAINER
        record: dict[str, Any] = {"path": path, "class": name, "training": module.training}
        layout = None if name in (GRAPH_MODULE, CONTAINER) else self._allowed.layout(name)
        settings = {} if layout is None else self._settings(path, module, layout)
        if settings:
            record["settings"] = settings
        if isinstance(module, GraphModule):
            record["name"] = type(module).__name__
        entries = _entries(module, layout)
        tensors = {key: [kind, self._key(path, key, tensor)] for kind, key, tensor in entries}
        if tensors:
            record["tensors"] = tensors
        return record

    def _key(self, path: str, name: str, tensor: Tensor | None) -> str | None:
        full = f"{path}.{name}" if path else name
        if not is_atom(name):
            raise ArchiveError(f"tensor '{full}' has a name that cannot be stored", hint="use letters, digits, '_' and '-'")
        return None if tensor is None else self._tensors.add(full, tensor)

    def _settings(self, path: str, module: Any, layout: Layout) -> dict[str, Any]:
        if layout.form is Form.STATE:
            return {key: value for key, value in module.state().items() if not isinstance(value, bytes)}
        if layout.form in (Form.PACKED, Form.MADE):
            values = {key: getattr(module, key) for key in layout.attributes}
        else:
            _refuse_overrides(path, module, layout)
            values = {key: value for key, value in vars(module).items() if layout.takes(key) and not isinstance(value, Tensor)}
        return {key: self._setting(f"{path}.{key}", value) for key, value in values.items()}

    def _setting(self, where: str, value: Any) -> Any:
        function = self._allowed.function_name(value) if callable(value) and not isinstance(value, type) else None
        if function is not None:
            return {"function": function}
        try:
            return encode(value)
        except ArchiveError as error:
            raise ArchiveError(f"attribute '{where}': {error.message}", hint=error.hint) from None


def _unknown_class(path: str, module: nn.Module) -> ArchiveError:
    cls = type(module)
    return ArchiveError(
        f"module '{path}' is a {cls.__module__}.{cls.__qualname__}, which archives cannot hold",
        hint="canonicalise the graph first, or pass the class to save and load: allow=(TheClass,)",
    )


def _refuse_hooks(path: str, module: nn.Module) -> None:
    if any(getattr(module, table, None) for table in _HOOKS):
        raise ArchiveError(f"module '{path}' has hooks, which would be lost", hint="remove the hooks before saving")


def _refuse_overrides(path: str, module: nn.Module, layout: Layout) -> None:
    for key in vars(module):
        if key not in BASE_ATTRIBUTES and not layout.takes(key) and hasattr(layout.cls, key):
            raise ArchiveError(
                f"module '{path}' replaces '{key}' of its class, which would be lost", hint="make a subclass and allow it instead"
            )


def _entries(module: nn.Module, layout: Layout | None) -> list[tuple[str, str, Tensor | None]]:
    """What is stored of a module: the kind, the name and the tensor of each member."""
    if layout is not None and layout.form is Form.STATE:
        return [*_bytes_of(module)]
    found = _tensors_of(module)
    if layout is None or layout.form is not Form.MADE:
        return [*found]
    return [entry for entry in found if entry[1] in layout.tensors or "tensors" in layout.tensors]


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, str, Tensor | None]]:
    for name, parameter in module._parameters.items():
        yield "parameter", name, parameter
    for name, buffer in module._buffers.items():
        yield ("temporary" if name in module._non_persistent_buffers_set else "buffer"), name, buffer
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and name not in BASE_ATTRIBUTES:
            yield "constant", name, value


def _bytes_of(module: Any) -> Iterator[tuple[str, str, Tensor]]:
    for name, value in module.state().items():
        if isinstance(value, bytes):
            yield "bytes", name, torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)


class ModuleReader:
    """Builds the modules of records; ``modules`` maps paths to them."""

    def __init__(self, allowed: Allowed, tensors: dict[str, Tensor]) -> None:
        self.modules: dict[str, nn.Module] = {}
        # The last module and those above it. Only these may get children, only others may be repeated: no cycles.
        self._open: list[str] = []
        self._allowed = allowed
        self._tensors = tensors

    def add(self, record: Any) -> None:
        """Build one module and register it with its parent, which must have come before.

        Raises:
            ArchiveError: the record is unsound.
        """
        if not isinstance(record, dict):
            raise damaged("a module is not an object")
        path = record.get("path")
        if not isinstance(path, str) or path in self.modules or not (is_path(path) if self.modules else path == ""):
            raise damaged(f"a module has the path {str(path)[:80]!r}")
        parent, _, name = path.rpartition(".")
        while self._open and self._open[-1] != parent:
            self._open.pop()
        if path and not self._open:
            raise damaged(f"module '{path}' does not follow its parent")
        module = self._module(path, record)
        if path:
            _add_child(self.modules[parent], name, module)
        self.modules[path] = module
        if "same_as" not in record:
            self._open.append(path)

    def _module(self, path: str, record: dict[str, Any]) -> nn.Module:
        if "same_as" in record:
            original = str(record["same_as"])
            if original not in self.modules or original in self._open:
                raise damaged(f"module '{path}' repeats one that cannot be repeated")
            return self.modules[original]
        tensors = self._module_tensors(path, record.get("tensors", {}))
        if record.get("class") == GRAPH_MODULE:
            module: nn.Module = _graph_module(record.get("name"))
        else:
            module = self._build(record, tensors)
        for name, (kind, tensor) in tensors.items():
            _add_tensor(module, name, kind, tensor)
        if type(record.get("training")) is not bool:
            raise damaged(f"module '{path}' has no training flag")
        vars(module)["training"] = record["training"]
        if isinstance(module, nn.RNNBase):
            _finish_recurrent(module)
        return module

    def _module_tensors(self, path: str, table: Any) -> Tensors:
        if not isinstance(table, dict):
            raise damaged(f"module '{path}' has no table of tensors")
        tensors: Tensors = {}
        for name, entry in table.items():
            if not is_atom(name) or not isinstance(entry, list) or len(entry) != 2 or entry[0] not in _KINDS:
                raise damaged(f"module '{path}' has a wrong tensor entry")
            kind, key = entry
            if key is not None and (not isinstance(key, str) or key not in self._tensors):
                raise damaged(f"module '{path}' uses a tensor that is not there")
            tensor = None if key is None else self._tensors[key]
            if (kind == "constant" and tensor is None) or (kind == "parameter" and not isinstance(tensor, nn.Parameter | None)):
                raise damaged(f"'{path}.{name}' is not a {kind}")
            tensors[name] = (kind, tensor)
        return tensors

    def _build(self, record: dict[str, Any], tensors: Tensors) -> nn.Module:
        layout = self._allowed.layout(record.get("class"))
        settings = record.get("settings", {})
        if not isinstance(settings, dict):
            raise damaged(f"module '{record['path']}' has no settings")
        for key in settings:
            if not layout.takes(key):
                raise ArchiveError(
                    f"module '{record['path']}' sets '{key[:80]}', which a {layout.cls.__name__} does not have",
                    hint="if the file was written with a newer torch, update torch; else it is damaged",
                )
        values = {key: self._setting(layout, key, value) for key, value in settings.items()}
        if layout.form in _MAKERS:
            try:
                return _MAKERS[layout.form](layout.cls, values, tensors)
            except (TypeError, ValueError, AttributeError, RuntimeError, LookupError, FxCompressError) as error:
                raise damaged(f"module '{record['path']}' cannot be made: {str(error).splitlines()[0][:120]}") from None
        module: nn.Module = layout.cls.__new__(layout.cls)
        nn.Module.__init__(module)
        for key, value in {**copy.deepcopy(layout.attributes), **values}.items():
            if key not in tensors:
                object.__setattr__(module, key, value)
        return module

    def _setting(self, layout: Layout, key: str, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"function"}:
            if not layout.takes_function(key):
                raise damaged(f"'{key}' of a {layout.cls.__name__} is not a function")
            return self._allowed.function(value["function"])
        return decode(value)


def _packed(cls: Any, settings: dict[str, Any], tensors: Tensors) -> nn.Module:
    weight, bias = tensors.pop("weight")[1], tensors.pop("bias")[1]
    # The kernels read as many biases as there are output channels, without looking.
    if weight is None or weight.dim() < 2 or not (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == weight.dtype)):
        raise ValueError("bias and weight do not fit")
    module: nn.Module = cls(weight, bias, **settings)
    return module


def _from_state(cls: Any, settings: dict[str, Any], tensors: Tensors) -> nn.Module:
    if not all(type(value) in (int, str) for value in settings.values()):
        raise ValueError("a setting is neither text nor a number")
    state = dict(settings)
    for name in [name for name, (kind, _) in tensors.items() if kind == "bytes"]:
        tensor = tensors.pop(name)[1]
        if tensor is None or tensor.dtype is not torch.uint8:
            raise ValueError(f"{name} is not made of bytes")
        state[name] = tensor.numpy().tobytes()
    module: nn.Module = cls.from_state(state)
    return module


_MAKERS: dict[Form, Callable[[Any, dict[str, Any], Tensors], nn.Module]] = {
    Form.PACKED: _packed,
    Form.STATE: _from_state,
    Form.MADE: lambda cls, settings, tensors: quantized.make(cls, settings, {name: tensors.pop(name)[1] for name in list(tensors)}),
}


def _graph_module(name: Any) -> GraphModule:
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
        raise damaged("a graph has no name")
    return GraphModule(nn.Module(), Graph(), class_name=name)


def _free(module: nn.Module, name: str) -> None:
    """Refuse a name that would hide a method, or something that is already there."""
    taken = name in module._modules or name in module._parameters or name in module._buffers or name in vars(module)
    if not is_atom(name) or taken or getattr(type(module), name, None) is not None:
        raise damaged(f"a {type(module).__name__} cannot have a member called '{name[:80]}'")


def _add_child(parent: nn.Module, name: str, module: nn.Module) -> None:
    if name not in BASE_ATTRIBUTES and not isinstance(parent, GraphModule):
        vars(parent).pop(name, None)  # the default of a slot such as the norm of a TransformerEncoder
    _free(parent, name)
    parent._modules[name] = module


def _add_tensor(module: nn.Module, name: str, kind: str, tensor: Tensor | None) -> None:
    _free(module, name)
    if kind == "bytes":
        raise damaged(f"a {type(module).__name__} takes no bytes")
    if kind == "parameter":
        module._parameters[name] = tensor  # type: ignore[assignment]
    elif kind == "constant":
        object.__setattr__(module, name, tensor)
    else:
        module._buffers[name] = tensor
        if kind == "temporary":
            module._non_persistent_buffers_set.add(name)


def _finish_recurrent(module: nn.RNNBase) -> None:
    """Set what a recurrent module derives from its weights. Their shapes are checked: the kernels do not do it."""
    weights = {name: weight for name, weight in module._parameters.items() if weight is not None}
    try:
        if not 0 < module.num_layers <= len(weights):  # else the next line may take forever
            raise ValueError("num_layers does not fit the weights")
        sizes = (module.input_size, module.hidden_size, module.num_layers)
        projection = {"proj_size": module.proj_size} if module.proj_size else {}
        cls: Any = type(module)
        expected = cls(*sizes, bias=module.bias, bidirectional=module.bidirectional, device="meta", **projection)
    except (TypeError, ValueError, RuntimeError) as error:
        raise damaged(f"a {type(module).__name__} has impossible settings: {str(error)[:100]}") from None
    shapes = {name: weight.shape for name, weight in expected.named_parameters()}
    if module._flat_weights_names != expected._flat_weights_names or {k: w.shape for k, w in weights.items()} != shapes:
        raise damaged(f"a {type(module).__name__} has the wrong weights")
    module._all_weights = expected._all_weights
    module._flat_weights = [weights[name] for name in module._flat_weights_names]
    module._init_flat_weights()
