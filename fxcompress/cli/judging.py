"""Checks one model: its snapshot against its baseline, and the gates on what differs."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from fxcompress.cli.config import SUFFIX, Config, ModelConfig
from fxcompress.cli.files import check_writable, write_text
from fxcompress.cli.outcome import Outcome, failed
from fxcompress.cli.sides import Side, snapshot_of
from fxcompress.compare import codec
from fxcompress.compare.approval import agree
from fxcompress.compare.diff import diff
from fxcompress.compare.gates import Versions, judged, missing
from fxcompress.compare.schema import Snapshot
from fxcompress.errors import ArchiveError, FxCompressError
from fxcompress.report.difference import Difference
from fxcompress.targets.timing import interleaved


@dataclass(frozen=True)
class Judge:
    """Checks the models of one configuration. ``update``: write new baselines; ``show``: told what is being done."""

    config: Config
    update: bool
    show: Callable[[str], None]

    def outcome(self, model: ModelConfig) -> Outcome:
        """What came out; a model that cannot be checked is an outcome, too, so that the others are."""
        try:
            return self._checked(model)
        except FxCompressError as error:
            notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
            return failed(model.name, model.baseline, f"{error}{notes}")
        except (Exception, SystemExit) as error:  # the user's own code may fail in any way, and may even end the program with success
            traceback.print_exc()
            return failed(model.name, model.baseline, f"{type(error).__name__}: {error}")

    def _checked(self, model: ModelConfig) -> Outcome:
        head = snapshot_of(self._spec(model.spec), self._side(model), self._told(model), model.name)
        if self.update and model.baseline.endswith(SUFFIX):
            return self._updated(model, head)
        base = self._baseline(model)
        if base is None:
            found = Difference(model.baseline, model.name, 0, len(head.nodes), 0, gates=(missing(model.baseline),))
        else:
            found = self._difference(model, base, head)
        note = f"'{model.baseline}' is a model and is not written" if self.update else ""
        return Outcome(model.name, self._judged(model, found, base, head), note=note)

    def _updated(self, model: ModelConfig, head: Snapshot) -> Outcome:
        """The difference that was approved, with the gates that do not depend on the baseline that has just been replaced."""
        base, note = self._replaced(model)
        found = self._difference(model, head if base is None else base, head)
        if base is not None and agree(found, base, head):
            note = f"{model.baseline} is up to date"
        else:
            self._write(model, head)
            note = f"{note}; wrote {model.baseline}".removeprefix("; ")
        same = found if base is None else self._difference(model, head, head)
        gates = self._judged(model, same, head, head).gates
        return Outcome(model.name, replace(found, gates=gates), note=note)

    def _replaced(self, model: ModelConfig) -> tuple[Snapshot | None, str]:
        """The baseline that will be replaced, or None and why it could not be read."""
        try:
            return self._baseline(model), ""
        except ArchiveError as error:
            return None, f"the old one could not be read ({error.message})"

    def _write(self, model: ModelConfig, head: Snapshot) -> None:
        path = self.config.path(model.baseline)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArchiveError(f"cannot write '{path}': {error.strerror}", hint="choose another place for the baselines") from None
        check_writable(path)
        write_text(path, codec.encode(head))

    def _baseline(self, model: ModelConfig) -> Snapshot | None:
        """None where there is no such file."""
        path = self.config.path(model.baseline)
        if model.baseline.endswith(SUFFIX):
            return codec.read(path) if path.exists() else None
        if ":" not in model.baseline and not path.exists():
            return None
        side = replace(self._side(model), pipeline=None, weights=None)
        return snapshot_of(self._spec(model.baseline), side, self._told(model), model.name)

    def _difference(self, model: ModelConfig, base: Snapshot, head: Snapshot) -> Difference:
        timed = any(budget.name == "latency" for budget in model.gates) and base.live is not None and base is not head
        self.show(f"{model.name}: compare")
        return replace(diff(base, head, latency=timed), base=model.baseline, head=model.name)

    def _judged(self, model: ModelConfig, found: Difference, base: Snapshot | None, head: Snapshot) -> Difference:
        timed = any(budget.name == "latency" for budget in model.gates) and found.numbers.latency is None
        return judged(model.gates, Versions(found, base, head, _seconds(head) if timed else None))

    def _told(self, model: ModelConfig) -> Callable[[str], None]:
        return lambda text: self.show(f"{model.name}: {text}")

    def _spec(self, spec: str) -> str:
        """A SPEC that is the path of a file starts at the configuration's folder."""
        path = self.config.path(spec)
        return str(path) if path.is_file() or ":" not in spec else spec

    def _side(self, model: ModelConfig) -> Side:
        return Side(
            inputs=model.inputs,
            dtype=model.dtype,
            weights=None if model.weights is None else self.config.path(model.weights),
            pretrained=model.pretrained,
            bake=model.bake,
            numbers=model.numbers,
            pipeline=model.pipeline,
            data=model.data,
        )


def _seconds(head: Snapshot) -> float | None:
    """Median time of one call of the graph on its example inputs."""
    live = head.live
    if live is None:
        return None
    return interleaved({"head": lambda: live.inputs.call(live.module)}, seconds=1.0)["head"].median / 1e3
