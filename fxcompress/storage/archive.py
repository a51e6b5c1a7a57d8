"""Saving a graph module to one file, and loading it without running or importing anything that the file names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from fxcompress.errors import ArchiveError
from fxcompress.pruning.handover import Handed
from fxcompress.storage.classes import Allowed
from fxcompress.storage.container import read_file, write_file
from fxcompress.storage.graphs import MAX_NODES, decode_graph, encode_graph
from fxcompress.storage.modules import ModuleReader, ModuleWriter
from fxcompress.storage.tensors import TensorWriter, read_tensors
from fxcompress.storage.values import damaged, decode, encode

MAX_GRAPHS = 1000
"""How many graph modules (the whole, and those nested in it) an archive may have."""

Allow = Iterable[type | Callable[..., Any]]


def save(module: GraphModule, path: str | os.PathLike[str], *, extra: Mapping[str, str] | None = None, allow: Allow = ()) -> None:
    """Write a graph module to one safetensors file. The module is not changed.

    Kept: nodes, settings of modules, parameters and buffers (tied ones stay tied, with their strides and requires_grad),
    train flags, plain entries of ``module.meta``, and the texts in ``extra``. Not kept: type annotations, ``node.meta``,
    attributes that no forward of a torch.nn module reads, and devices of tensors (they are loaded to the CPU). The same
    module gives the same bytes in every process.

    Args:
        allow: module classes and functions of others that the file may name; give the same ones to :func:`load`.

    Raises:
        ArchiveError: something in the graph cannot be stored (it says which node or module), or the file cannot be written.
    """
    if not isinstance(module, GraphModule):
        raise ArchiveError(f"a {type(module).__name__} is no graph", hint="capture the model first; only whole graphs can be saved")
    texts = dict(extra or {})
    if not all(isinstance(item, str) for pair in texts.items() for item in pair):
        raise ArchiveError("extra holds something that is not text", hint="give a dict of str to str, e.g. json.dumps(report)")
    allowed, tensors = Allowed(allow), TensorWriter()
    modules = ModuleWriter(allowed, tensors)
    modules.add("", module)
    graphs = [{"path": name, "nodes": encode_graph(graph, allowed), "meta": _encode_meta(graph)} for name, graph in modules.graphs.items()]
    document = {"torch": _torch_version(), "modules": modules.records, "graphs": graphs, "tensors": tensors.rows, "extra": texts}
    write_file(Path(path), document, tensors.stored)


def load(path: str | os.PathLike[str], *, allow: Allow = ()) -> GraphModule:
    """Read a graph module that :func:`save` has written; neither the model's source nor torchvision is needed.

    Nothing in the file is run, imported or unpickled: functions, methods and module classes are looked up in fixed
    tables, and names are checked before torch.fx writes them into code. *Running* a loaded model computes what the file
    says, so a file from a stranger may still waste time and memory or give wrong answers; the checksum shows damage,
    not who wrote the file.

    An object of a dataclass or ``ModelOutput`` class is returned as a :class:`~fxcompress.storage.Record` and a named
    tuple as one of the same fields, unless the class is in ``allow``.

    Raises:
        ArchiveError: the file is missing, damaged, of a newer version, or names what is not allowed.
    """
    document, stored = read_file(Path(path))
    try:
        return _build(document, stored, Allowed(allow))
    except ArchiveError:
        raise
    except Exception as error:  # the file comes from anywhere: whatever its content provokes is the file's fault
        raise damaged(f"{type(error).__name__}: {str(error)[:200]}") from error


def read_extra(path: str | os.PathLike[str]) -> dict[str, str]:
    """The ``extra`` texts of a file, after its checksum was verified.

    Raises:
        ArchiveError: as :func:`load` does for the file as a whole.
    """
    return _extra(read_file(Path(path))[0])


def _build(document: dict[str, Any], stored: dict[str, torch.Tensor], allowed: Allowed) -> GraphModule:
    _extra(document)
    records, graphs = document.get("modules"), document.get("graphs")
    if not isinstance(records, list) or not isinstance(graphs, list) or not 0 < len(records) <= MAX_NODES or len(graphs) > MAX_GRAPHS:
        raise damaged("there are no modules or graphs")
    reader = ModuleReader(allowed, read_tensors(document.get("tensors"), stored))
    for record in records:
        reader.add(record)
    pending = {id(m) for m in reader.modules.values() if isinstance(m, GraphModule)}
    for entry in graphs:
        module = reader.modules.get(str(entry.get("path"))) if isinstance(entry, dict) else None
        if not isinstance(module, GraphModule) or id(module) not in pending:
            raise damaged("a graph belongs to no module")
        pending.remove(id(module))
        module.graph = decode_graph(entry.get("nodes"), module, allowed)
        module.meta.update(_decode_meta(entry.get("meta")))
    root = reader.modules[""]
    if pending or not isinstance(root, GraphModule):
        raise damaged("a module has no graph")
    return root


def _extra(document: dict[str, Any]) -> dict[str, str]:
    extra = document.get("extra")
    if not isinstance(extra, dict) or not all(isinstance(text, str) for text in extra.values()):
        raise damaged("the extra texts are none")
    return extra


def _encode_meta(module: GraphModule) -> dict[str, Any]:
    meta = {}
    for key, value in module.meta.items():
        try:
            meta[str(key)] = encode(value.plan.to_json() if isinstance(value, Handed) else value)
        except ArchiveError:  # an analysis or another object of this process, which means nothing in a file
            continue
    return meta


def _decode_meta(meta: Any) -> dict[str, Any]:
    if not isinstance(meta, dict):
        raise damaged("a graph has no meta")
    return {key: decode(value) for key, value in meta.items()}


def _torch_version() -> str:
    return str(torch.__version__).partition("+")[0]
