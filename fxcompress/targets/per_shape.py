"""A graph that is compiled once for each shape it is called with: :class:`PerShape`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import TargetError
from fxcompress.ir.effects import written_operand
from fxcompress.targets.cpu_kernels import ordinary_mode, refuse_gradients
from fxcompress.targets.inference import InferenceOnly

__all__ = ["PerShape"]

_Key = tuple[Any, ...]
_MAX_SHAPES = 4  # compiled forms kept; each may hold packed weights of its own


class PerShape(InferenceOnly):
    """Runs ``graph`` compiled for the shapes it is called with; same positional tensor inputs, same outputs (any nesting).

    ``graph`` is the state and the fallback: it runs wherever the compiled form does not (other dtypes, arguments that are no
    tensors, autocast, tracing, the first call of a new shape, more shapes than are kept). A shape is compiled at its second call, or
    by :meth:`prepare`, and its first run is compared with the graph; ``refused`` holds the shapes that failed, and why. What is compiled
    is dropped when parameters or buffers change, and is never copied or stored.
    """

    refused: dict[_Key, str]
    _compiled: dict[_Key, Callable[..., Any]]
    _seen: list[_Key]  # shapes called once
    _state: list[tuple[dict[str, Any], str, Tensor]]  # where each tensor of the graph is held
    _versions: int

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.graph = graph
        self._forget()

    # -- what a kind of compilation says -------------------------------------------------------------------------

    def _unsuited(self, tensors: list[Tensor]) -> str | None:
        """Why the graph as it is now should not be compiled for these inputs, or None."""
        raise NotImplementedError

    def _compile(self, tensors: list[Tensor]) -> Callable[..., Any]:
        """The compiled form; may raise RuntimeError or IndexError for what it cannot do."""
        raise NotImplementedError

    def _disagreement(self, run: Callable[..., Any], tensors: list[Tensor]) -> str | None:
        """How the compiled form differs from the graph, or None."""
        raise NotImplementedError

    def _key(self, tensors: list[Tensor]) -> _Key:
        """What a compiled form is good for."""
        return tuple((t.shape, t.dtype) for t in tensors)

    # -- calls ---------------------------------------------------------------------------------------------------

    def forward(self, *args: Any) -> Any:
        """The outputs of the graph; raises ModeError when an input requires a gradient and grad mode is on."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        refuse_gradients(*tensors)
        if not args or len(tensors) != len(args) or not all(map(_plain, tensors)) or not ordinary_mode():
            return self.graph(*args)
        if self._compiled and self._changed():
            self._forget()
        key = self._key(tensors)
        run = self._compiled.get(key)
        if run is not None:
            return run(*tensors)
        if key not in self._seen:
            self._seen = [*self._seen[-63:], key]
        elif key not in self.refused and len(self._compiled) < _MAX_SHAPES:
            self._try(key, tensors)
        return self.graph(*args)

    def prepare(self, *args: Tensor) -> None:
        """Compile for the shapes of ``args`` now. TargetError with the reason where this cannot be done."""
        tensors = list(args)
        key = self._key(tensors)
        if key in self._compiled and not self._changed():
            return
        while len(self._compiled) >= _MAX_SHAPES:
            del self._compiled[next(iter(self._compiled))]
        self._try(key, tensors)
        if key in self.refused:
            raise TargetError(f"{type(self).__name__} cannot run this model: {self.refused[key]}", hint="use the packed modules alone")

    def _try(self, key: _Key, tensors: list[Tensor]) -> None:
        reason = self._unsuited(tensors)
        if reason is None:
            self._note_versions()
            try:
                with self._state_kept():
                    run = self._compile(tensors)
                    reason = self._disagreement(run, tensors)
                reason = reason or ("it writes into its own buffers" if self._changed() else None)
            except (RuntimeError, IndexError) as error:  # what torch raises for what it cannot do
                reason = str(error).strip().splitlines()[-1][:200]
        if reason is not None:
            self.refused[key] = reason
            return
        self._compiled[key] = run

    @torch.no_grad()
    def _reference(self, tensors: list[Tensor]) -> Any:
        return self.graph(*tensors)

    # -- state ---------------------------------------------------------------------------------------------------

    def _changed(self) -> bool:
        """Whether a tensor of the graph was replaced or written since the forms were compiled."""
        return any(holder.get(name) is not t for holder, name, t in self._state) or self._version_sum() != self._versions

    def _version_sum(self) -> int:
        return sum(0 if t.is_inference() else t._version for _, _, t in self._state)

    def _note_versions(self) -> None:
        if not self._compiled:  # else they are those of the forms that are kept
            self._versions = self._version_sum()

    def _forget(self) -> None:
        self._compiled, self._seen, self.refused = {}, [], {}
        holders: list[dict[str, Any]] = [d for m in self.graph.modules() for d in (m._parameters, m._buffers)]
        self._state = [(holder, name, t) for holder in holders for name, t in holder.items() if t is not None]
        self._versions = self._version_sum()

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Puts buffers back into which a graph that writes has written, such as a count of its calls."""
        nodes = self.graph.graph.nodes if isinstance(self.graph, GraphModule) else ()
        kept = [(t, t.clone()) for t in self.graph.buffers()] if any(written_operand(node) is not None for node in nodes) else []
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in kept:
                    if not torch.equal(tensor, before):
                        tensor.copy_(before)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self._forget()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()  # inference tensors have no version that would tell

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}, "_seen": [], "refused": {}, "_state": [], "_versions": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def _plain(t: Tensor) -> bool:
    return type(t) is Tensor and t.is_cpu and t.layout is torch.strided and t.numel() > 0
