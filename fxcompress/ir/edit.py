"""Edits of a graph that keep meta data and provenance, and never change a module that someone else reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.ir.copying import copied, private_copy

PROVENANCE = "fxcompress_from"  # node.meta key: names of the captured nodes that a node stands for


def provenance(node: Node) -> tuple[str, ...]:
    """Names of the nodes of the captured graph that ``node`` computes; its own name if it was captured."""
    return tuple(node.meta.get(PROVENANCE, (node.name,)))


class Editor:
    """All edits of one graph by one pass.

    It knows which nodes call which module, so that a module with several callers, or a parameter with several
    owners, is copied before it is changed. Unused modules are removed by :meth:`finish`.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self._callers: dict[str, set[Node]] = {}
        self._read_inside: set[str] = set()  # paths of modules of which a get_attr node reads a tensor
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self._callers.setdefault(str(node.target), set()).add(node)
            if node.op == "get_attr":
                self._note_inside(str(node.target))
        self._names = {name for name, _ in module.named_modules()}

    # -- modules ---------------------------------------------------------------------------------------------

    def callers(self, path: str) -> set[Node]:
        """The nodes that call (or read) ``path``."""
        return self._callers.get(path, set())

    def _note_inside(self, target: str) -> None:
        parts = target.split(".")[:-1]
        self._read_inside.update(".".join(parts[: i + 1]) for i in range(len(parts)))

    def add_module(self, path: str, module: nn.Module) -> str:
        """Add ``module`` under ``path``, or under ``path_1``, ... when that is taken; returns the name used."""
        name, number = path, 0
        while name in self._names or self._taken(name):
            number += 1
            name = f"{path}_{number}"
        self._ensure_parents(name)
        self.module.add_submodule(name, module)
        self._names.add(name)
        return name

    def remove_module(self, path: str) -> None:
        """Take a module that nobody calls out of the tree, so that its path is free."""
        self.module.delete_submodule(path)
        self._names.discard(path)

    def _taken(self, name: str) -> bool:
        parent, _, leaf = name.rpartition(".")
        try:
            return hasattr(self.module.get_submodule(parent), leaf)
        except AttributeError:
            return False

    def _ensure_parents(self, name: str) -> None:
        parts = name.split(".")[:-1]
        self._names.update(".".join(parts[: i + 1]) for i in range(len(parts)))

    def set_module(self, node: Node, module: nn.Module) -> None:
        """Let the call_module ``node`` call ``module``: in the old one's place if nobody else calls or reads that, else beside it."""
        path = str(node.target)
        if self.callers(path) == {node} and path not in self._read_inside:
            self.module.set_submodule(path, module)
            return
        self._callers[path].discard(node)
        node.target = self.add_module(path, module)
        self._callers[str(node.target)] = {node}

    def set_modules(self, nodes: Sequence[Node], module: nn.Module) -> None:
        """Let all of ``nodes``, which call one module, call ``module``: in the old one's place if nobody else calls or reads that."""
        path = str(nodes[0].target)
        if self.callers(path) == set(nodes) and path not in self._read_inside:
            self.module.set_submodule(path, module)
            return
        name = self.add_module(path, module)
        self._callers[path] -= set(nodes)
        self._callers[name] = set(nodes)
        for node in nodes:
            node.target = name

    # -- nodes -----------------------------------------------------------------------------------------------

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        with self.graph.inserting_before(node):
            yield

    def call_module(self, path: str, module: nn.Module, args: tuple[Any, ...], *, before: Node, of: Iterable[Node]) -> Node:
        """Insert a call of a new module before ``before``; it stands for the nodes ``of``."""
        name = self.add_module(path, module)
        with self.graph.inserting_before(before):
            node = self.graph.call_module(name, args)
        self._callers[name] = {node}
        return self._describe(node, of)

    def call_function(
        self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, before: Node, of: Iterable[Node]
    ) -> Node:
        """Insert a function call before ``before``; it stands for the nodes ``of``."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs or {})
        return self._describe(node, of)

    def get_attr(self, path: str, value: Tensor, *, before: Node, of: Iterable[Node]) -> Node:
        """Insert a read of a new buffer holding ``value`` before ``before``."""
        holder, _, leaf = path.rpartition(".")
        name = leaf
        owner = self.module.get_submodule(holder)
        number = 0
        while hasattr(owner, name):
            number += 1
            name = f"{leaf}_{number}"
        owner.register_buffer(name, value)
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(f"{holder}.{name}" if holder else name)
        self._callers[str(node.target)] = {node}
        self._note_inside(str(node.target))
        return self._describe(node, of)

    def call(self, path: str, args: tuple[Any, ...], *, before: Node, of: Iterable[Node]) -> Node:
        """Insert a call of a module that is in the tree already; it stands for the nodes ``of``."""
        with self.graph.inserting_before(before):
            node = self.graph.call_module(path, args)
        self._callers.setdefault(path, set()).add(node)
        return self._describe(node, of)

    def read(self, path: str, *, before: Node, of: Iterable[Node]) -> Node:
        """Insert a read of a parameter or buffer that is in the tree already."""
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(path)
        self._callers.setdefault(path, set()).add(node)
        self._note_inside(path)
        return self._describe(node, of)

    def _describe(self, node: Node, of: Iterable[Node]) -> Node:
        sources = list(of)
        for source in sources:
            for key, value in source.meta.items():
                node.meta.setdefault(key, value)
        node.meta[PROVENANCE] = tuple(dict.fromkeys(name for source in sources for name in provenance(source)))
        return node

    def absorb(self, node: Node, other: Node) -> None:
        """Note that ``node`` now also computes what ``other`` did."""
        node.meta[PROVENANCE] = tuple(dict.fromkeys((*provenance(node), *provenance(other))))

    def replace(self, node: Node, value: Node) -> None:
        """Let everyone who reads ``node`` read ``value``, and erase ``node``."""
        node.replace_all_uses_with(value)
        self.erase(node)

    def erase(self, node: Node) -> None:
        if node.op in ("call_module", "get_attr"):
            self._callers.get(str(node.target), set()).discard(node)
        self.graph.erase_node(node)

    def finish(self) -> None:
        """Drop modules, parameters and buffers that no node reads any more, and generate the code."""
        read = [path for path, nodes in self._callers.items() if nodes]
        drop_unread(self.module, read)
        self.module.recompile()


def drop_unread(module: GraphModule, read: Iterable[str]) -> None:
    """Remove every module, parameter and buffer that is neither among the paths ``read`` nor below or above one of them."""
    keep = set(read)
    above = {path.rsplit(".", n)[0] for path in keep for n in range(1, path.count(".") + 1)}
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if name and (name in keep or name not in above):
            continue
        for table in (child._parameters, child._buffers, child._modules):
            for leaf in list(table):
                path = f"{name}.{leaf}" if name else leaf
                if path not in keep and path not in above:
                    delattr(child, leaf)


def own(node: Node, editor: Editor) -> nn.Module:
    """The module that ``node`` calls, as a private copy whose parameters nobody else owns and that may be changed."""
    private = private_copy(editor.module.get_submodule(str(node.target)))
    editor.set_module(node, private)
    return private


def set_parameter(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Give a private module a new parameter (never changes the old tensor in place); keeps ``requires_grad``."""
    old = module._parameters.get(name)
    if value is None:
        module.register_parameter(name, None)
        return
    trainable = old.requires_grad if old is not None else any(p.requires_grad for p in module.parameters())
    module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=trainable))


def share(module: GraphModule) -> GraphModule:
    """A copy of the graph and its modules that shares the tensors."""
    return copied(module)
