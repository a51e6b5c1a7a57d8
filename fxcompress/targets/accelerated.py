"""A graph module that hands its calls to a compiled form of itself where that is possible."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor
from torch.fx import GraphModule

from fxcompress.errors import TargetError
from fxcompress.ir.inputs import Inputs
from fxcompress.targets.cpu_graph import OneDnnGraph
from fxcompress.targets.per_shape import PerShape
from fxcompress.targets.replay import Replay

FLAG = "fxcompress_runs_as"  # module.meta key; kept by copies and files, so what was compiled can be compiled again

_RUNNER = "_runs_as"
_FORMS: dict[str, type[PerShape]] = {"onednn-graph": OneDnnGraph, "replay": Replay}


class AcceleratedGraph(GraphModule):
    """A GraphModule that runs as ``meta[FLAG]`` says, "onednn-graph" or "replay", and as it is where that is not set.

    State, signature and graph are those of the module itself; what is compiled belongs to one object and one process.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if FLAG in self.meta:
            tensors = self._positional(args, kwargs)
            if tensors is not None:
                return self._runner()(*tensors)
        return super().__call__(*args, **kwargs)

    def prepare(self, inputs: Inputs) -> None:
        """Compile for the shapes of ``inputs`` now.

        Raises:
            TargetError: it cannot be done; the reason is in the message.
        """
        tensors = self._positional(inputs.args, dict(inputs.kwargs))
        if tensors is None:
            raise TargetError(f"{_FORMS[self.meta[FLAG]].__name__} takes tensors as arguments, and nothing else")
        self._runner().prepare(*tensors)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """All arguments in the order of ``forward``, if they are tensors without a gap; else None."""
        names = [str(node.target) for node in self.graph.nodes if node.op == "placeholder"] if kwargs else []
        given = [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]
        in_order = list(kwargs) == [] or set(names[len(args) : len(given)]) == set(kwargs)
        return given if in_order and all(isinstance(value, Tensor) for value in given) else None

    def _runner(self) -> PerShape:
        runner: PerShape | None = self.__dict__.get(_RUNNER)
        if runner is None:
            # Outside _modules: the runner reads this module's own layers and tensors, it owns none.
            runner = self.__dict__[_RUNNER] = _FORMS[self.meta[FLAG]](GraphModule(self, self.graph))
        return runner

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)
        self.__dict__.pop(_RUNNER, None)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.__dict__.pop(_RUNNER, None)

    def __reduce__(self) -> Any:
        self.__dict__.pop(_RUNNER, None)
        return super().__reduce__()
