"""Lint: the rules that every graph must keep, checked after every pass."""

from __future__ import annotations

import re
from pathlib import PurePath

import torch
from torch.fx import GraphModule, Node

from fxcompress.errors import GraphError


def verify(module: GraphModule) -> None:
    """Check that a graph is well formed.

    Raises:
        GraphError: a node is used before it is defined, a target is missing, or there is no output.
    """
    outputs = 0
    seen: set[Node] = set()
    names: set[str] = set()
    for node in module.graph.nodes:
        for used in node.all_input_nodes:
            if used not in seen:
                raise GraphError(f"node '{node.name}' reads '{used.name}' before it is computed")
        if node.name in names:
            raise GraphError(f"two nodes are called '{node.name}'")
        seen.add(node)
        names.add(node.name)
        outputs += node.op == "output"
        if node.op in ("call_module", "get_attr"):
            _check_target(module, node)
    if outputs != 1:
        raise GraphError(f"the graph has {outputs} output nodes; it needs exactly one")


def _check_target(module: GraphModule, node: Node) -> None:
    found: object = module
    for part in str(node.target).split("."):
        if not hasattr(found, part):
            raise GraphError(f"node '{node.name}' reads '{node.target}', which the module does not have")
        found = getattr(found, part)
    if node.op == "call_module" and not isinstance(found, torch.nn.Module):
        raise GraphError(f"node '{node.name}' calls '{node.target}', which is a {type(found).__name__}, not a module")


def source_line(node: Node) -> str | None:
    """``file:line`` of the user's code that made a node, when the tracer noted it."""
    trace = node.meta.get("stack_trace")
    if not isinstance(trace, str):
        return None
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    if not frames:
        return None
    parts = frames[-1].split('"')
    number = frames[-1].split("line ")[-1].split(",")[0].strip()
    return f"{parts[1]}:{number}" if len(parts) > 2 else None


def place(source: str | None) -> str:
    """A source line without the folders that say nothing: what follows site-packages, else the last three parts."""
    if not source:
        return ""
    parts = PurePath(re.split(r"(?:site|dist)-packages[\\/]", source)[-1]).parts
    return "/".join(parts[-3:])


def neighbourhood(node: Node, before: int = 3, after: int = 3) -> str:
    """The lines of the graph around ``node``, for an error message."""
    nodes = list(node.graph.nodes)
    at = nodes.index(node)
    lines = [f"{'>' if n is node else ' '} {n.format_node()}" for n in nodes[max(0, at - before) : at + after + 1]]
    return "\n".join(lines)
