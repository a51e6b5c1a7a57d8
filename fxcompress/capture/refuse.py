"""What is refused, because the graph would silently compute something else than the model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize, prune

from fxcompress.capture.location import where_defined
from fxcompress.errors import InputError, UnsupportedModelError
from fxcompress.ir.inputs import Inputs

_BAKE = "call with bake=True to compute the final weights once, in the library's copy (your model stays as it is)"
# kind of forward pre-hook -> (what it is called, how torch takes it off again)
# transformers puts hooks on its own layers to collect hidden states; they change nothing, and run while recording
_OBSERVER = "transformers.utils.output_capturing"
_WEIGHT_HOOKS = ("WeightNorm", "SpectralNorm")


def check_model(model: Any) -> None:
    """Refuse what is not a plain, materialised ``nn.Module``.

    Raises:
        UnsupportedModelError: with what to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, not a torch.nn.Module", hint="wrap the function in the forward of an nn.Module"
        )
    for path, module in model.named_modules():
        where = f" (submodule '{path}')" if path else ""
        advice = _wrapper_advice(module)
        if advice:
            raise UnsupportedModelError(f"the model{where} is a {type(module).__name__}", hint=advice)
        if any(nn.parameter.is_lazy(p) for p in (*module._parameters.values(), *module._buffers.values())):
            raise UnsupportedModelError(
                f"the lazy layer {type(module).__name__}{where} has no weights yet", hint="run the model once on an example before"
            )


def _wrapper_advice(module: nn.Module) -> str | None:
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "pass the module inside it: model.module"
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.TopLevelTracedModule)):
        return "pass the Python module it was scripted or traced from; TorchScript cannot be rewritten"
    if type(module).__name__ == "OptimizedModule":
        return "pass the module before torch.compile: model._orig_mod"
    return None


def check_data(model: nn.Module) -> None:
    """Refuse a model without values.

    Raises:
        UnsupportedModelError: parameters are on the device "meta".
    """
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "the model is on the device 'meta': its weights have no values",
            hint="load the weights, e.g. model.to_empty(device='cpu') and load_state_dict",
        )


def check_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Refuse inputs that lie elsewhere than the model, or are empty.

    Raises:
        UnsupportedModelError: only the inputs have values.
        InputError: the devices differ, or a tensor has no elements.
    """
    if not all(tensor.is_meta for tensor in inputs.tensors()):
        check_data(model)
    homes = {t.device for t in (*model.parameters(), *model.buffers())}
    for tensor in inputs.tensors():
        if tensor.numel() == 0:
            raise InputError(
                f"an example input has the shape {tuple(tensor.shape)}, so it holds no values", hint="pass at least one example"
            )
        if homes and tensor.device not in homes:
            names = " and ".join(sorted(map(str, homes)))
            raise InputError(
                f"the model is on {names}, an example input on {tensor.device}",
                hint=f"move them together, e.g. model.to('{tensor.device}') or x.to('{min(map(str, homes))}')",
            )


def check_hooks(model: nn.Module, bake: bool) -> None:
    """Refuse forward hooks, and reparametrised weights unless they will be baked in.

    Raises:
        UnsupportedModelError: with the file and line of the hook, or of the module's class.
    """
    for path, module in model.named_modules():
        name = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
        if parametrize.is_parametrized(module) and not bake:
            chains = module.get_submodule("parametrizations").children()
            kinds = sorted({type(p).__name__.lstrip("_") for chain in chains for p in chain.children()})
            raise UnsupportedModelError(
                f"the weights of {name} are computed in every call by a parametrization ({', '.join(kinds)})", hint=_BAKE
            )
        for hook in module._forward_pre_hooks.values():
            if is_weight_hook(hook):
                if not bake:
                    raise UnsupportedModelError(f"the weights of {name} are computed in every call by {type(hook).__name__}", hint=_BAKE)
                continue
            _refuse_hook(name, "forward pre-hook", hook)
        for hook in module._forward_hooks.values():
            if getattr(hook, "__module__", None) == _OBSERVER:
                continue
            _refuse_hook(name, "forward hook", hook)


def is_weight_hook(hook: Any) -> bool:
    return type(hook).__name__ in _WEIGHT_HOOKS or isinstance(hook, prune.BasePruningMethod)


def _refuse_hook(name: str, kind: str, hook: Any) -> None:
    where = where_defined(hook)
    text = getattr(hook, "__qualname__", type(hook).__name__)
    raise UnsupportedModelError(
        f"{name} has a {kind}: {text}" + (f", defined at {where}" if where else ""),
        hint="a graph does not call hooks: remove it (handle.remove()) or write what it does into forward",
    )


# functional layers that are random when their flag is set: position and default of the probability and of the flag
_RANDOM: dict[Any, tuple[int, float, int, bool]] = {
    F.dropout: (1, 0.5, 2, True), F.dropout1d: (1, 0.5, 2, True), F.dropout2d: (1, 0.5, 2, True), F.dropout3d: (1, 0.5, 2, True),
    F.alpha_dropout: (1, 0.5, 2, False), F.feature_alpha_dropout: (1, 0.5, 2, False), F.rrelu: (1, 1.0, 3, False),
    torch.dropout: (1, 0.5, 2, True), torch.feature_dropout: (1, 0.5, 2, True), torch.alpha_dropout: (1, 0.5, 2, True),
}  # fmt: skip


def check_graph(graph: fx.Graph) -> None:
    """Refuse functional dropout whose training flag has become a constant.

    Raises:
        UnsupportedModelError: with the line of the user's code.
    """
    for node in graph.nodes:
        if node.op != "call_function" or not _always_random(node):
            continue
        name = getattr(node.target, "__name__", str(node.target))
        raise UnsupportedModelError(
            f"{name} is random in this graph for good{_at(node)}: its training flag would not follow model.eval()",
            hint="use the module (nn.Dropout), or capture the model in eval mode with training=self.training in the call",
        )


def _always_random(node: fx.Node) -> bool:
    if node.target is F.scaled_dot_product_attention:
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0) != 0.0)
    if node.target not in _RANDOM:
        return False
    at_p, default_p, at_flag, default_flag = _RANDOM[node.target]

    def value(position: int, names: tuple[str, ...], default: Any) -> Any:
        found = [node.kwargs[n] for n in names if n in node.kwargs]
        return found[0] if found else (node.args[position] if len(node.args) > position else default)

    return bool(value(at_flag, ("training", "train"), default_flag)) and bool(value(at_p, ("p", "lower"), default_p) != 0.0)


def _at(node: fx.Node) -> str:
    frames = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines() if line.strip().startswith("File ")]
    if not frames:
        return ""
    parts = frames[-1].split('"')
    return f" ({parts[1]}:{frames[-1].split('line ')[-1].split(',')[0]})"
