"""``torch.compile(model, backend="fxcompress")``: fusion and lowering of the graphs that Dynamo finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.api import REWRITES
from fxcompress.errors import InputError
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

OPTIONS = {"pipeline": REWRITES, "target": "cpu", "verify": True}


def fxcompress(gm: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Rewrite and lower one graph of Dynamo, for inference under ``torch.no_grad`` or ``torch.inference_mode``.

    The weights are taken as they are at the first call; compile again after changing them.

    Args:
        options: ``pipeline`` (text of the passes before lowering), ``target`` ("cpu", "openvino", "onnxruntime" or
            "none") and ``verify``, as in ``torch.compile(model, backend="fxcompress", options={"verify": False})``.

    Raises:
        InputError: an unknown option, or gradients are on and the model's parameters ask for them.
    """
    chosen = {**OPTIONS, **(options or {})}
    unknown = set(chosen) - set(OPTIONS)
    if unknown:
        raise InputError(f"unknown option '{min(unknown)}' of backend 'fxcompress'", hint=f"its options are {', '.join(OPTIONS)}")
    if torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in example_inputs):
        raise InputError(
            "backend 'fxcompress' is for inference, but gradients are on", hint="call the compiled model under torch.no_grad()"
        )
    module, dynamic = _own_weights(gm, example_inputs)
    inputs = Inputs(tuple(_concrete(example_inputs[i]) for i in dynamic))
    text = chosen["pipeline"] + ("" if chosen["target"] == "none" else f",lower{{target={chosen['target']}}}")
    lowered = Pipeline.parse(text).execute(module, inputs, verify=chosen["verify"]).module
    return lambda *args: lowered(*[args[i] for i in dynamic])


def _own_weights(gm: GraphModule, examples: Sequence[Any]) -> tuple[GraphModule, list[int]]:
    """A copy of the graph in which Dynamo's parameter inputs are attributes, and the places of the inputs that remain."""
    module = share(gm)
    module.training = False  # Dynamo's own flag says nothing: what depends on the mode is an argument in its graph
    dynamic = []
    for place, node in enumerate([n for n in module.graph.nodes if n.op == "placeholder"]):
        value = examples[place]
        if not isinstance(value, torch.Tensor) or not _is_static(node, value):
            dynamic.append(place)
            continue
        name = f"weight_{place}"
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        else:
            module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            read = module.graph.get_attr(name)
        node.replace_all_uses_with(read)
        module.graph.erase_node(node)
    # Attributes stand before the inputs that remain; the generated forward wants its arguments first.
    first = next((n for n in module.graph.nodes if n.op != "placeholder"), None)
    for node in [n for n in module.graph.nodes if n.op == "placeholder"]:
        if first is not None and first < node:
            first.prepend(node)
    module.recompile()
    return module, dynamic


def _is_static(node: Node, value: torch.Tensor) -> bool:
    return isinstance(value, nn.Parameter) or "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})


def _concrete(value: Any) -> Any:
    """A size that Dynamo keeps symbolic, as the number it has in this call."""
    return value.node.hint if isinstance(value, torch.SymInt) else value
