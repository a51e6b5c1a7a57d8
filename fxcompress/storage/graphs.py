"""The nodes of a graph as plain data, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from fxcompress.errors import ArchiveError
from fxcompress.storage.classes import Allowed, qualified
from fxcompress.storage.functions import RECORD, is_attribute, is_method
from fxcompress.storage.record import FORMS, fields_of, form_of
from fxcompress.storage.values import damaged, decode, encode, is_identifier, is_name, is_path

MAX_NODES = 1_000_000
"""How many nodes a graph in an archive may have."""


def encode_graph(module: GraphModule, allowed: Allowed) -> list[dict[str, Any]]:
    """One object per node: ``op``, ``name``, ``target``, ``args``, ``kwargs``.

    Raises:
        ArchiveError: a node calls what archives do not know, or holds what is not plain data; says which node.
    """
    if type(module.graph._codegen) is not CodeGen:
        raise ArchiveError(
            "the graph packs its inputs in a pytree", hint="capture the model with fxcompress.capture, which gives plain inputs"
        )
    return [_encode_node(node, allowed) for node in module.graph.nodes]


def _encode_node(node: Node, allowed: Allowed) -> dict[str, Any]:
    row: dict[str, Any] = {"op": node.op, "name": node.name}
    args, kwargs = node.args, dict(node.kwargs)
    if not is_identifier(node.name):
        raise ArchiveError(f"a node is called {node.name[:80]!r}, which is no name", hint="give it a name that Python takes for a variable")
    try:
        if node.op == "call_function":
            row["target"], args, kwargs = _encode_call(node, allowed)
        else:
            row["target"] = node.target
        if args:
            row["args"] = [encode(arg, 1) for arg in args]
        if kwargs:
            row["kwargs"] = {key: encode(value, 1) for key, value in kwargs.items()}
        _check(row["op"], row["target"], args, kwargs)
    except ArchiveError as error:
        raise ArchiveError(f"node '{node.name}': {error.message}", hint=error.hint) from None
    return row


def _encode_call(node: Node, allowed: Allowed) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    name = allowed.function_name(node.target)
    if name is not None:
        return name, node.args, dict(node.kwargs)
    form = form_of(node.target)
    if form is None:
        raise ArchiveError(
            f"it calls {qualified(node.target).replace(':', '.')}, which archives cannot name",
            hint="canonicalise the graph first, or pass the function to save and load: allow=(the_function,)",
        )
    cls: Any = node.target
    fields = fields_of(cls, node.args, dict(node.kwargs))
    return RECORD, (form, cls.__name__, tuple(fields), tuple(fields.values())), {}


def decode_graph(rows: Any, root: nn.Module, allowed: Allowed) -> Graph:
    """The graph of rows that :func:`encode_graph` has made; ``root`` has its modules and tensors already.

    Raises:
        ArchiveError: the rows are no graph, or call what archives may not call.
    """
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_NODES:
        raise damaged("there is no list of nodes")
    graph, nodes = Graph(), dict[str, Node]()
    for row in rows:
        try:
            _decode_node(row, graph, nodes, root, allowed)
        except ArchiveError as error:
            name = row.get("name") if isinstance(row, dict) else None
            raise ArchiveError(f"node {str(name)[:80]!r}: {error.message}", hint=error.hint) from None
    if rows[-1]["op"] != "output" or sum(row["op"] == "output" for row in rows) != 1:
        raise damaged("a graph does not end with its one output")
    return graph


def _decode_node(row: Any, graph: Graph, nodes: dict[str, Node], root: nn.Module, allowed: Allowed) -> None:
    if not isinstance(row, dict) or not set(row) <= {"op", "name", "target", "args", "kwargs"}:
        raise damaged("a node has the wrong form")
    op: Any = row.get("op")
    name: Any = row.get("name")
    target = row.get("target")
    if not isinstance(op, str) or not is_identifier(name) or name in nodes or not isinstance(target, str):
        raise damaged(f"a node is called {str(name)[:80]!r}")
    args, kwargs = row.get("args", []), row.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise damaged(f"node '{name}' has no arguments")
    values = tuple(decode(arg, nodes, 1) for arg in args)
    keywords = {key: decode(value, nodes, 1) for key, value in kwargs.items()}
    _check(op, target, values, keywords)
    if op in ("call_module", "get_attr"):
        _resolve(root, op, target)
    call = allowed.function(target) if op == "call_function" else target
    if target == RECORD:
        _check_record(values)
    nodes[name] = graph.create_node(op, call, values, keywords, name=name)


def _check(op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What must hold for any node, since its names are written into the code that torch.fx makes and runs."""
    if not all(map(is_name, kwargs)):
        raise damaged("an argument has a name that is none")
    if op == "placeholder":
        sound = is_name(str(target).removeprefix("**" if str(target).startswith("**") else "*")) and len(args) <= 1 and not kwargs
        if not sound or any(isinstance(arg, Node) for arg in args):
            raise damaged(f"an input is called {str(target)[:80]!r}")
    elif op == "output":
        if target != "output" or len(args) != 1 or kwargs:
            raise damaged("an output has the wrong form")
    elif op == "call_method":
        if args and not isinstance(args[0], Node):
            raise damaged("a method is called on a constant")
        if not is_method(target) or not args:
            raise ArchiveError(
                f"it calls the method '{str(target)[:80]}', which archives may not call", hint="use a torch function instead"
            )
    elif op == "call_function":
        if target == "builtins.getattr" and (len(args) != 2 or kwargs or not is_attribute(args[1])):
            what = str(args[1])[:80] if len(args) > 1 else ""
            raise ArchiveError(
                f"it reads the attribute '{what}', which archives may not read", hint="only attributes of tensors such as shape can be read"
            )
    elif op not in ("call_module", "get_attr") or not is_path(target):
        raise damaged(f"a node does {op[:40]!r} on {str(target)[:80]!r}")


def _check_record(args: tuple[Any, ...]) -> None:
    form, kind, names, values = args if len(args) == 4 else (None, None, (), None)
    sound = form in FORMS and is_name(kind) and isinstance(names, tuple) and isinstance(values, tuple) and len(names) == len(values)
    if not sound or not all(is_name(n) and not n.startswith("_") for n in names) or len(set(names)) != len(names):
        raise damaged("a record has the wrong form")


def _resolve(root: nn.Module, op: str, target: str) -> None:
    """Refuse a target that is not a registered module or tensor; nothing else is ever reached through getattr."""
    owner: Any = root
    path, _, last = target.rpartition(".")
    for name in path.split(".") if path else ():
        owner = owner._modules.get(name) if owner is not None else None
    if owner is not None and op == "call_module" and owner._modules.get(last) is not None:
        return
    if owner is not None and op == "get_attr":
        tensor = owner._parameters.get(last, owner._buffers.get(last, vars(owner).get(last)))
        if isinstance(tensor, Tensor):
            return
    raise damaged(f"a node reads '{target[:80]}', which is not there")
