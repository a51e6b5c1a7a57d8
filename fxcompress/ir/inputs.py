"""Example inputs of a model, in the one form that the rest of the library uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword arguments of one call of a model; leaves may be nested in tuples, lists and dicts."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example_inputs: Any, forward: Callable[..., Any] | None = None) -> Inputs:
        """Read what the user passed as ``example_inputs``.

        A tuple holds positional arguments. A dict whose keys all name parameters of ``forward`` holds keyword
        arguments. Anything else (a tensor, a list, another dict) is the one positional argument.

        Raises:
            InputError: there is no tensor in it, or ``forward`` does not take these arguments.
        """
        if isinstance(example_inputs, Inputs):
            inputs = example_inputs
        elif isinstance(example_inputs, tuple):
            inputs = cls(example_inputs)
        elif isinstance(example_inputs, dict) and _names_parameters(example_inputs, forward):
            inputs = cls((), dict(example_inputs))
        else:
            inputs = cls((example_inputs,))
        if not inputs.tensors():
            what = "None" if example_inputs is None else f"{type(example_inputs).__name__} without a tensor"
            raise InputError(
                f"example_inputs is {what}",
                hint="pass what forward takes, e.g. torch.randn(1, 3, 224, 224), a tuple of arguments or a dict of keyword arguments",
            )
        if forward is not None:
            try:
                inspect.signature(forward).bind(*inputs.args, **inputs.kwargs)
            except TypeError as error:
                raise InputError(
                    f"example_inputs do not fit forward{inspect.signature(forward)}: {error}",
                    hint="a tuple is taken as positional arguments, a dict of parameter names as keyword arguments",
                ) from None
        return inputs

    def call(self, module: Callable[..., Any]) -> Any:
        return module(*self.args, **self.kwargs)

    def bind(self, graph: fx.Graph) -> dict[fx.Node, Any]:
        """The value that each placeholder of ``graph`` receives.

        Raises:
            InputError: the graph does not take these arguments.
        """
        nodes, signature = placeholders(graph), signature_of(graph)
        try:
            bound = signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise InputError(f"the inputs do not fit the graph's arguments {signature}: {error}") from None
        bound.apply_defaults()
        return dict(zip(nodes, bound.arguments.values(), strict=True))

    def map_tensors(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        args, kwargs = pytree.tree_map_only(torch.Tensor, fn, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, torch.Tensor)]

    def clone(self) -> Inputs:
        """A copy that an in-place first operation of the model cannot spoil."""
        return self.map_tensors(torch.clone)


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def signature_of(graph: fx.Graph) -> inspect.Signature:
    """The arguments that ``graph`` takes, without annotations."""
    return inspect.Signature([_parameter(node) for node in placeholders(graph)])


def _parameter(node: fx.Node) -> inspect.Parameter:
    name = str(node.target)
    kind = {0: inspect.Parameter.POSITIONAL_OR_KEYWORD, 1: inspect.Parameter.VAR_POSITIONAL, 2: inspect.Parameter.VAR_KEYWORD}
    stars = len(name) - len(name.lstrip("*"))
    default = node.args[0] if node.args and not stars else inspect.Parameter.empty
    return inspect.Parameter(name.lstrip("*"), kind[stars], default=default)


def _names_parameters(mapping: Mapping[Any, Any], forward: Callable[..., Any] | None) -> bool:
    if forward is None or not mapping or not all(isinstance(key, str) for key in mapping):
        return False
    parameters = inspect.signature(forward).parameters
    if set(mapping) <= set(parameters):
        return True
    # forward(self, **kwargs) takes any name, unless a positional parameter would then stay empty.
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return takes_any and set(needed) <= set(mapping)
