"""Where NaN or infinite numbers come from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.edit import provenance
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.observers_base import Observer

__all__ = ["observed_nodes", "why_not_finite"]


def observed_nodes(module: nn.Module) -> dict[str, list[str]]:
    """For each observer by its name, the names of the nodes whose values it sees, in their order; of a graph only."""
    if not isinstance(module, fx.GraphModule):
        return {}
    found: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        if _observes(module, node):
            found.setdefault(str(node.target), []).append(_name(node.args[0]))
    return found


def why_not_finite(module: nn.Module, observers: dict[str, Observer], inputs: Inputs, number: int) -> InputError:
    """The error to raise after a run on ``inputs``, batch ``number``: it names the first value that is not finite."""
    bad_inputs = sum(int((~t.isfinite()).sum()) for t in inputs.tensors() if t.is_floating_point())
    if bad_inputs:
        hint = "leave this batch out, or mend how it is read"
        return InputError(f"calibration batch {number} itself holds {bad_inputs} NaN or infinite numbers", hint=hint)
    hint = "look at the weights and inputs of what computes it, or keep it in float by ignore=..."
    if isinstance(module, fx.GraphModule):
        search = _Search(module)
        search.run(*inputs.bind(module.graph).values())
        if search.found is not None:
            name, count = search.found
            return InputError(f"'{name}' gives {count} NaN or infinite numbers on calibration batch {number}", hint=hint)
    name, observer = next((name, observer) for name, observer in observers.items() if observer.nonfinite)
    return InputError(f"'{name}' saw {observer.nonfinite} NaN or infinite numbers on calibration batch {number}", hint=hint)


class _Search(fx.Interpreter):
    """Runs a graph and keeps the first node whose observed value is not finite, and how many of its numbers."""

    found: tuple[str, int] | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.found is None and isinstance(value, Tensor) and value.is_floating_point() and _observes(self.module, n):
            count = int((~value.float().isfinite()).sum())
            if count:
                self.found = _name(n.args[0]), count
        return value


def _observes(module: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module" or not isinstance(node.args[0], fx.Node):
        return False
    return isinstance(module.get_submodule(str(node.target)), Observer)


def _name(value: Any) -> str:
    return "+".join(provenance(value)) if isinstance(value, fx.Node) else str(value)
