"""What every pass of a pipeline did to the graph: plain data, from which the text and the page are made."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.errors import InputError
from fxcompress.report import steps_text
from fxcompress.report.diff_html import steps_page
from fxcompress.report.difference import Difference


@dataclass(frozen=True)
class ExplainedStep:
    """One pass.

    Attributes:
        text: of the pass, from which it can be parsed.
        part: path of the captured part on which it ran; "" for the whole model.
        seconds: that the pass took, with its verification.
        rewrites: how many it did.
        missed: how many places it looked at and refused.
        error: relative difference of the outputs to the step before; None where nothing changed or nothing was compared.
        difference: of the graph after the pass to the one before; None where the pass changed nothing.
    """

    text: str
    part: str
    seconds: float
    rewrites: int = 0
    missed: int = 0
    error: float | None = None
    difference: Difference | None = None

    @property
    def title(self) -> str:
        """The pass, and the part if it is not the whole."""
        return f"{self.text} in {self.part}" if self.part else self.text


@dataclass(frozen=True)
class Explanation:
    """A pipeline, step by step.

    Attributes:
        model: how the user names it.
        steps: all passes in the order in which they ran, those that changed nothing, too.
        wholes: for every part that changed, the difference of its last graph to the captured one.
    """

    model: str
    steps: tuple[ExplainedStep, ...]
    wholes: tuple[Difference, ...] = ()

    @property
    def changes(self) -> tuple[ExplainedStep, ...]:
        """The passes that changed something."""
        return tuple(step for step in self.steps if step.difference is not None)

    def to_text(self, width: int = 96) -> str:
        """Plain text for a terminal: after each pass that changed something, what it did, equal changes told once. No line is longer
        than ``width``."""
        return steps_text.render(self, width)

    def to_html(self) -> str:
        """One self-contained page that steps through the graph after each pass."""
        stages = [(step.title, step.difference) for step in self.steps if step.difference is not None]
        return steps_page(self.model, stages)

    def render(self, suffix: str) -> str:
        """The form that a file name's suffix (``txt`` or ``html``) asks for.

        Raises:
            InputError: another suffix.
        """
        forms = {"txt": self.to_text, "html": self.to_html}
        form = forms.get(suffix.lower().lstrip("."))
        if form is None:
            raise InputError(f"there is no explanation in the form '{suffix}'", hint=f"the forms are {', '.join(forms)}")
        return form()

    def __str__(self) -> str:
        return self.to_text()
