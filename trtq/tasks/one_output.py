"""Shared parts of tasks that read one output of a form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.tasks.base import Outputs, Places, Task
from trtq.tasks.facts import Facts, shape_words

Own = TypeVar("Own", bound="OneOutput")
ROUNDING = 0.05  # how far a quantized probability may be outside 0 to 1


@dataclass(frozen=True, kw_only=True)
class OneOutput(Task):
    """A task that reads one output: the first, or the only one that has the task's form.

    Attributes:
        form: of the output, as errors name it.
        ranks: how many axes the output may have.
        words: what may be asked for behind the colon beside the name of an output.
        asked: what was asked for behind the colon.
        output: name of the output, once the task is bound to a model.
    """

    form: ClassVar[str]
    ranks: ClassVar[tuple[int, ...]]
    words: ClassVar[tuple[str, ...]] = ()
    asked: str = ""
    output: str = ""

    @property
    def label(self) -> str:  # noqa: D102
        return f"{self.name}:{self.asked}" if self.asked else self.name

    def with_argument(self: Own, argument: str) -> Own:
        """Return the task that reads the output of a name, or as one of its words says.

        Args:
            argument: name of an output, one of :attr:`words`, or both with a comma between.
        """
        return replace(self, asked=argument)

    def has_word(self, word: str) -> bool:
        """Whether a word was asked for."""
        return word in self.asked.split(",")

    def bound(self: Own, facts: Facts) -> Own:
        """Return the task with the output that it reads.

        Args:
            facts: shapes of the outputs, in order.

        Raises:
            UsageError: there is no such output, none has the form, or several have.
        """
        named = [part for part in self.asked.split(",") if part and part not in self.words]
        name = self._named(named, facts) if named else self._only(facts)
        option_text = ",".join(p for p in (*(w for w in self.words if self.has_word(w)), *named))
        if not named and name != next(iter(facts.outputs)):
            option_text = ",".join(p for p in (option_text, name) if p)
        return replace(self, asked=option_text, output=name)

    def _named(self, named: list[str], facts: Facts) -> str:
        if len(named) > 1 or named[0] not in facts.outputs:
            what = f", or {', '.join(self.words)}" if self.words else ""
            raise UsageError(
                f"Cannot use the task {self.name}:{self.asked}",
                f"{','.join(named)} is no output; the outputs are {_listed(facts)}",
                f"Give one of their names{what}: --task {self.name}:{next(iter(facts.outputs))}",
            )
        if not self._fits(named[0], facts):
            raise self._unfit(facts)
        return named[0]

    def _only(self, facts: Facts) -> str:
        fitting = [name for name in facts.outputs if self._fits(name, facts)]
        if fitting and fitting[0] == next(iter(facts.outputs)):
            return fitting[0]
        if not fitting:
            raise self._unfit(facts)
        if len(fitting) > 1:
            raise UsageError(
                f"Several outputs fit the task {self.name}",
                f"{' and '.join(fitting)} are {self.form}",
                f"Choose one: --task {self.name}:{fitting[0]}",
            )
        return fitting[0]

    def _fits(self, name: str, facts: Facts) -> bool:
        return len(facts.outputs[name]) in self.ranks

    def _unfit(self, facts: Facts) -> UsageError:
        return UsageError(
            f"No output fits the task {self.name}",
            f"it reads {self.form}; the outputs are {_listed(facts)}",
            "Keep the output that it reads (--outputs), or choose another --task",
        )

    def decode(self, outputs: Outputs, places: Places) -> Any:
        """Return the output as it is, samples first.

        Args:
            outputs: of the model by name.
            places: not used.

        Raises:
            UsageError: it is missing.
        """
        del places
        if not self.output:
            return next(iter(outputs.values()))
        if self.output not in outputs:
            raise UsageError(
                f"The task {self.name} has no output {self.output} to read",
                f"the outputs are {', '.join(outputs) or 'none'}",
                "Keep all outputs of the model (leave --outputs out)",
            )
        return outputs[self.output]


def probabilities(scores: npt.NDArray[Any], task: str, *, logits: bool) -> Array:
    """Return scores as probabilities, 0 to 1; NaN remains NaN.

    Args:
        scores: probabilities, or logits.
        task: name, for the error.
        logits: they are logits.

    Raises:
        UsageError: they are no probabilities, although they should be.
    """
    from scipy.special import expit

    values = np.asarray(scores, dtype=np.float32)
    if logits:
        return np.asarray(expit(values), dtype=np.float32)
    sound = values[np.isfinite(values)]
    low, high = (float(sound.min()), float(sound.max())) if sound.size else (0.0, 1.0)
    if low < -ROUNDING or high > 1.0 + ROUNDING:
        raise UsageError(
            f"The scores of the task {task} are no probabilities",
            f"they are between {low:.3g} and {high:.3g}, expected 0 to 1",
            f"For logits, before the sigmoid: --task {task}:logits",
        )
    return values


def _listed(facts: Facts) -> str:
    return ", ".join(f"{name} {shape_words(shape)}" for name, shape in facts.outputs.items())
