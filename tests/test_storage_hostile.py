"""Files that are made to do harm, with a right checksum: always an ArchiveError, never anything else."""

from __future__ import annotations

import ast
import copy
import random
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_storage_files import contents, folder, forge, refused, valid
from torch import Tensor

from fxcompress.errors import ArchiveError
from fxcompress.storage import load

__all__ = ["folder"]  # the fixture


Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def node(op: str, target: Any, *args: Any, name: Any = "evil", **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


def at(index: int, row: Any) -> Change:
    return lambda document, _: document["graphs"][0]["nodes"].insert(index, row)


X = {"node": "x"}
CODE = "import_('os')"
NODES: dict[str, Any] = {
    "eval": node("call_function", "builtins.eval", "1"),
    "import": node("call_function", "builtins.__import__", "os"),
    "os": node("call_function", "os.system", "true"),
    "load": node("call_function", "torch.load", "file"),
    "from_file": node("call_function", "torch.from_file", "file"),
    "aten from_file": node("call_function", "torch.ops.aten.from_file.default", "file"),
    "namespace": node("call_function", "torch.ops.__class__.mro"),
    "overload": node("call_function", "torch.ops.aten.add.__class__", X),
    "unknown overload": node("call_function", "torch.ops.aten.add.Nothing", X),
    "call": node("call_function", "operator.call", X),
    "methodcaller": node("call_function", "operator.methodcaller", "x"),
    "attrgetter": node("call_function", "operator.attrgetter", "__class__"),
    "foreign": node("call_function", "subprocess:run", "true"),
    "getattr dunder": node("call_function", "builtins.getattr", X, "__class__"),
    "getattr data_ptr": node("call_function", "builtins.getattr", X, "data_ptr"),
    "getattr by node": node("call_function", "builtins.getattr", X, X),
    "getattr by keyword": node("call_function", "builtins.getattr", X, "shape", default=1),
    "method": node("call_method", "apply_", X),
    "dunder method": node("call_method", "__reduce__", X),
    "method code": node("call_method", f"view); {CODE}; (x.view", X),
    "method without self": node("call_method", "view"),
    "module forward": node("call_module", "forward", X),
    "module code": node("call_module", f'conv"); {CODE}; ("', X),
    "module parent": node("call_module", "../conv", X),
    "module dunder": node("call_module", "__class__", X),
    "module that is a buffer": node("call_module", "wave", X),
    "attr dunder": node("get_attr", "__dict__"),
    "attr of method": node("get_attr", "forward.__globals__"),
    "attr that is a module": node("get_attr", "conv"),
    "attr missing": node("get_attr", "conv.nothing"),
    "placeholder code": node("placeholder", f"a={CODE}, b"),
    "placeholder keyword": node("placeholder", "lambda"),
    "placeholder stars": node("placeholder", "***a"),
    "placeholder twice": node("placeholder", "x"),
    "placeholder default of a node": node("placeholder", "later", X),
    "name code": node("call_function", "torch.relu", X, name=f"a = {CODE}\nb"),
    "name keyword": node("call_function", "torch.relu", X, name="class"),
    "method of a constant": node("call_method", "view", 0),
    "name taken": node("call_function", "torch.relu", X, name="x"),
    "name no string": node("call_function", "torch.relu", X, name=["x"]),
    "keyword code": node("call_function", "torch.relu", **{f"input={CODE}, b": X}),
    "keyword dunder": node("call_function", "torch.relu", X, __a=X),
    "later node": node("call_function", "torch.relu", {"node": "output"}),
    "itself": node("call_function", "torch.relu", {"node": "evil"}),
    "unknown op": node("run_code", CODE),
    "two outputs": node("output", "output", X),
    "target no string": node("call_function", ["torch.relu"], X),
    "no target": {"op": "call_function", "name": "evil"},
    "more keys": {**node("call_function", "torch.relu", X), "meta": {}},
    "no dict": ["call_function"],
    "record kind": node("call_function", "fxcompress.record", "dataclass", "a b", {"tuple": []}, {"tuple": []}),
    "record form": node("call_function", "fxcompress.record", "class", "a", {"tuple": []}, {"tuple": []}),
    "record names": node("call_function", "fxcompress.record", "namedtuple", "A", {"tuple": ["__class__"]}, {"tuple": [1]}),
    "operator without arguments": node("call_function", "operator.add"),
    "deep": node("call_function", "torch.relu", reduce(lambda v, _: {"list": [v]}, range(200), 1)),
    "tag": node("call_function", "torch.relu", {"pickle": "..."}),
    "two tags": node("call_function", "torch.relu", {"list": [], "node": "x"}),
    "list": node("call_function", "torch.relu", [1]),
    "unhashable key": node("call_function", "torch.relu", {"dict": [[{"list": []}, 1]]}),
    "device": node("call_function", "torch.relu", {"device": "cpu; import os"}),
    "no such device": node("call_function", "torch.relu", {"device": "abc:1"}),
    "dtype": node("call_function", "torch.relu", {"dtype": "__dict__"}),
    "activation": node("call_function", "torch.relu", {"activation": ["eval", ["1"]]}),
    "size": node("call_function", "torch.relu", {"size": [10**30]}),
    "range": node("call_function", "torch.relu", {"range": [0, 1, 0]}),
}


@pytest.mark.parametrize("name", NODES)
def test_hostile_node(name: str, folder: Path) -> None:
    document, tensors = contents(valid(), folder)
    document["graphs"][0]["nodes"].insert(2, NODES[name])
    refused(forge(document, tensors, folder / "m"))


def module(document: dict[str, Any], path: str) -> dict[str, Any]:
    return next(record for record in document["modules"] if record["path"] == path)


def tensor_row(document: dict[str, Any], key: str) -> dict[str, Any]:
    return next(row for row in document["tensors"] if row["key"] == key)


def extra_module(path: Any, cls: Any = "torch.nn.ReLU", **more: Any) -> Change:
    return lambda d, _: d["modules"].append({"path": path, "class": cls, "training": False, **more})


def put(where: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any) -> Change:
    return lambda d, _: where(d).__setitem__(key, value)


CHANGES: dict[str, Change] = {
    "class of os": extra_module("a", "os.PathLike"),
    "class of fx": extra_module("a", "torch.fx.GraphModule"),
    "graph name": extra_module("a", "torch.fx.GraphModule", name="a b"),
    "forward": extra_module("forward"),
    "graph": extra_module("graph"),
    "method": extra_module("conv.train"),
    "parameters": extra_module("_parameters"),
    "private": extra_module("_graph"),
    "dunder": extra_module("__class__"),
    "parent path": extra_module("../a"),
    "empty part": extra_module("a..b"),
    "quote": extra_module('a"b'),
    "no parent": extra_module("a.b"),
    "twice": extra_module("conv"),
    "root again": extra_module(""),
    "path no string": extra_module(["a"]),
    "long path": extra_module(".".join(["a"] * 100)),
    "setting dunder": extra_module("a", settings={"__class__": 1}),
    "setting forward": extra_module("a", settings={"forward": {"function": "torch.relu"}}),
    "setting unknown": extra_module("a", settings={"hooks": 1}),
    "setting function": extra_module("a", settings={"inplace": {"function": "torch.relu"}}),
    "settings no dict": extra_module("a", settings=[1]),
    "tensor missing": extra_module("a", tensors={"weight": ["parameter", "nothing"]}),
    "tensor kind": extra_module("a", tensors={"weight": ["pickle", "wave"]}),
    "tensor hides method": extra_module("a", tensors={"forward": ["buffer", "wave"]}),
    "buffer as parameter": extra_module("a", tensors={"weight": ["parameter", "wave"]}),
    "no flag": extra_module("a", training=1),
    "cycle": lambda d, _: d["modules"].append({"path": "conv.a", "same_as": "conv"}),
    "cycle of repeats": lambda d, _: d["modules"].extend(
        [
            {"path": "a", "class": "torch.nn.Module", "training": True},
            {"path": "b", "same_as": "a"},
            {"path": "b.c", "class": "torch.nn.Module", "training": True},
        ]
    ),
    "child after others": lambda d, _: d["modules"].extend(
        [
            {"path": "a", "class": "torch.nn.Module", "training": True},
            {"path": "b", "class": "torch.nn.Module", "training": True},
            {"path": "b.c", "same_as": "a"},
            {"path": "a.c", "same_as": "b"},
        ]
    ),
    "repeats root": lambda d, _: d["modules"].append({"path": "a", "same_as": ""}),
    "repeats nothing": lambda d, _: d["modules"].append({"path": "a", "same_as": "b"}),
    "no modules": lambda d, _: d.update(modules=[]),
    "modules no list": lambda d, _: d.update(modules={}),
    "no graphs": lambda d, _: d.update(graphs=[]),
    "many graphs": lambda d, _: d.update(graphs=d["graphs"] * 2),
    "graph of nothing": put(lambda d: d["graphs"][0], "path", "conv"),
    "no nodes": put(lambda d: d["graphs"][0], "nodes", []),
    "no output": lambda d, _: d["graphs"][0]["nodes"].pop(),
    "meta": put(lambda d: d["graphs"][0], "meta", [1]),
    "no tensors": lambda d, _: d.update(tensors=[]),
    "tensors no list": lambda d, _: d.update(tensors=None),
    "tensor unlisted": lambda d, t: t.update(more=torch.ones(1)),
    "extra": lambda d, _: d.update(extra={"a": 1}),
    "shape": put(lambda d: tensor_row(d, "conv.weight"), "shape", [4, 1, 1, 2**40]),
    "shape negative": put(lambda d: tensor_row(d, "wave"), "shape", [-2, -2]),
    "dtype": put(lambda d: tensor_row(d, "conv.weight"), "dtype", "float16"),
    "dtype unknown": put(lambda d: tensor_row(d, "conv.weight"), "dtype", "object"),
    "stride": put(lambda d: tensor_row(d, "wave"), "stride", [2**50, 1]),
    "stride overlap": put(lambda d: tensor_row(d, "wave"), "stride", [1, 1]),
    "flag": put(lambda d: tensor_row(d, "conv.weight"), "requires_grad", 1),
    "key": put(lambda d: tensor_row(d, "conv.weight"), "key", "../x"),
    "lstm hidden": put(lambda d: module(d, "lstm")["settings"], "hidden_size", 10**6),
    "lstm layers": put(lambda d: module(d, "lstm")["settings"], "num_layers", 10**12),
    "lstm names": put(lambda d: module(d, "lstm")["settings"], "_flat_weights_names", {"list": ["forward"]}),
    "conv groups": put(lambda d: module(d, "conv")["settings"], "dilation", None),
    "conv bias": put(lambda d: module(d, "conv")["tensors"], "bias", ["buffer", "lstm.bias_ih_l0"]),
    "engine": extra_module("a", "fxcompress.EngineModule", settings={"engine": "os", "ports": "[]", "threads": 0}),
    "engine ports": extra_module("a", "fxcompress.EngineModule", settings={"engine": "openvino", "ports": "[" * 9999, "threads": 0}),
    "engine bytes": extra_module("a", "fxcompress.EngineModule", tensors={"model": ["bytes", "wave"]}),
    "bytes for others": extra_module("a", tensors={"model": ["bytes", "wave"]}),
    "conv tensors": put(lambda d: module(d, "conv"), "tensors", {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_modules_and_tensors(name: str, folder: Path) -> None:
    document, tensors = contents(valid(), folder)
    CHANGES[name](document, tensors)
    refused(forge(document, tensors, folder / "m"))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


SEED = st.integers(0, 2**32)
WORDS = st.sampled_from(
    [
        "x",
        "conv",
        "wave",
        "forward",
        "__class__",
        "torch.relu",
        "builtins.getattr",
        "output",
        "call_module",
        "torch.nn.LSTM",
        "../x",
        "a;b",
        "",
        "\n",
    ]
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["node", "list", "tuple", "dict", "size", "slice", "dtype", "function", "activation", "complex"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(SEED, st.sampled_from(["set", "drop", "copy", "move"]), JUNK), min_size=1, max_size=3))
def test_fuzzed_documents(folder: Path, changes: list[tuple[int, str, Any]]) -> None:
    document, tensors = contents(valid(), folder)
    for seed, what, junk in changes:
        mutate(document, random.Random(seed), what, junk)
    only_archive_errors(forge(document, tensors, folder / "fuzzed"))


def mutate(document: Any, rng: random.Random, what: str, junk: Any) -> None:
    found = places(document)
    if not found:
        return
    place = rng.choice(found)
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    if what == "set":
        owner[place[-1]] = junk
    elif what == "drop":
        del owner[place[-1]]
    elif isinstance(owner, list):
        owner.insert(rng.randrange(len(owner)), copy.deepcopy(owner[place[-1]]))
        if what == "move":
            owner.pop()
    else:
        owner[junk if isinstance(junk, str) else rng.choice(list(owner))] = copy.deepcopy(owner[place[-1]])


def only_archive_errors(path: Path) -> None:
    before = set(sys.modules)
    try:
        code = load(path).code
    except ArchiveError as error:
        assert error.hint  # noqa: PT017
    else:
        written = list(ast.walk(ast.parse(code)))
        assert not [n for n in written if isinstance(n, ast.Import | ast.ImportFrom | ast.Lambda | ast.ClassDef)]
    assert {name for name in set(sys.modules) - before if not name.startswith(("torch", "_", "encodings"))} == set()
