"""``--recipe-quant``: a paper's recipe, of which each component has to pay on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import torch

from trtq.data.answers import HAVE_PREDICTIONS
from trtq.errors import UsageError
from trtq.flow.allocate import decide
from trtq.flow.analyze import analyze_model
from trtq.flow.auto_calibrator import answer_errors
from trtq.flow.inputs import Inputs
from trtq.flow.pricing import Pricing, uniform
from trtq.flow.ptq import Attempt, Calibration, attempt, calibrate, fitting
from trtq.flow.run import Run
from trtq.graph.feed import Feed, outputs_of
from trtq.methods.held_out import FEWEST, PAYS, split
from trtq.methods.paper_recipes import RECIPES, Component, PaperRecipe
from trtq.quant.formats import BitConfig
from trtq.records.analyze import AnalyzeRecord
from trtq.records.quantize import RecipeRecord, RecipeStep
from trtq.specs import AllocateOptions, AnalyzeOptions, QuantizeOptions

RULE = ("4", "6", "8")  # bits of S1's widths
CANDIDATES = ("3", "4", "5", "6", "8")
HALF_BITS = 16  # of a weight that remains in float, as engines keep it
KEPT = ("size", "energy")  # budgets that a mix of widths keeps
SLACK = 1.02  # within it, costs count as the same


def attempt_recipe(inputs: Inputs, options: QuantizeOptions) -> tuple[Attempt, RecipeRecord]:
    """Quantize with those components of a recipe that bring the answers nearer to the float model.

    Plain quantization is first, then each component joins those that were kept, in the order of the
    paper. A component is kept where the answers to samples that did not calibrate are nearer to the
    float model's than without it, by a twentieth at least. A mix of widths has to keep the bytes
    and the energy of the one width. So the result is never behind plain quantization of the same
    bytes on these samples. The last calibration uses all samples.

    Args:
        inputs: the model and its samples.
        options: as asked; ``recipe_quant`` names the recipe.

    Returns:
        The attempt, and what each component did.

    Raises:
        UsageError: too few samples, several processes, or options that the recipe replaces.
        TrtqError: calibration or export failed.
    """
    recipe = RECIPES[str(options.recipe_quant)]
    _require_fit(inputs, options, recipe)
    trial = _Trial.of(inputs, _base(options, recipe))
    steps = [trial.first(), *(trial.judge(c) for c in recipe.components)]
    done = attempt(inputs, trial.options)
    record = RecipeRecord(
        name=str(options.recipe_quant),
        source=recipe.source,
        held_out=sum(len(feed[0]) for feed in trial.held_out),
        steps=steps,
    )
    inputs.run.note(record.words)
    return done, record


def _base(options: QuantizeOptions, recipe: PaperRecipe) -> QuantizeOptions:
    """Return the options of plain quantization."""
    bits = recipe.bits if options.bits == QuantizeOptions().bits and recipe.bits else options.bits
    return msgspec.structs.replace(options, bits=bits)


def _require_fit(inputs: Inputs, options: QuantizeOptions, recipe: PaperRecipe) -> None:
    """Refuse what a recipe cannot be tried with.

    Raises:
        UsageError: names it.
    """
    what = f"Cannot use --recipe-quant {options.recipe_quant}"
    if inputs.workers.world > 1:
        raise UsageError(what, f"{inputs.workers.world} processes calibrate", "Start one process")
    if len(inputs.samples) < FEWEST:
        raise UsageError(
            what,
            f"it holds samples out, and {inputs.samples.name} has {len(inputs.samples)}, expected "
            f"at least {FEWEST}",
            "Give more samples, or leave --recipe-quant out",
        )
    if options.layer_bits and any(c.widths for c in recipe.components):
        raise UsageError(what, "it chooses the widths of layers, and an allocation has them")


@dataclass(slots=True)
class _Trial:
    """The components that were kept, and what is known of their answers.

    Attributes:
        inputs: the samples that calibrate in a trial.
        held_out: inputs of the model that do not.
        wanted: the float model's answers to them.
        options: that were kept.
        bits: the one width of plain quantization.
        distance: of the answers of what was kept.
    """

    inputs: Inputs
    held_out: Sequence[Feed]
    wanted: Sequence[Feed]
    options: QuantizeOptions
    bits: BitConfig
    distance: float = 0.0
    _analyses: dict[str, AnalyzeRecord] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, inputs: Inputs, options: QuantizeOptions) -> _Trial:
        """Split the samples; every fourth one is held out, at most 64."""
        rest, chosen = split(len(inputs.samples))
        silent = Run(inputs.run.progress)
        part = replace(inputs, samples=inputs.samples.select(rest), run=silent)
        judged = replace(inputs, samples=inputs.samples.select(chosen), run=silent)
        feeds = list(judged.images(len(chosen), options.batch_size))
        with torch.inference_mode():
            wanted = [outputs_of(inputs.model.graph.module(*feed)) for feed in feeds]
        return cls(part, feeds, wanted, options, BitConfig.parse(options.bits))

    def first(self) -> RecipeStep:
        """Try plain quantization."""
        done, self.distance = self._try(self.options)
        name = f"plain quantization at {self.options.bits}"
        return RecipeStep(
            name=name, source="", kept=True, distance=self.distance, weight_bytes=_bytes_of(done)
        )

    def judge(self, component: Component) -> RecipeStep:
        """Try a component beside those that were kept, and keep it where it pays.

        Args:
            component: to try.
        """
        step = RecipeStep(name=component.name, source=component.source, kept=False)
        options = fitting(self.inputs, component.added(self.options), self.options.method)
        if component.widths:
            widths, reason = self._widths(component.widths)
            if reason:
                return msgspec.structs.replace(step, reason=reason)
            options = msgspec.structs.replace(options, bits="w8a8", layer_bits=widths)
        if options == self.options:
            return msgspec.structs.replace(step, reason="it changes nothing on this model")
        done, distance = self._try(options)
        step = msgspec.structs.replace(step, distance=distance, weight_bytes=_bytes_of(done))
        if distance > PAYS * self.distance:
            return step
        self.options, self.distance = options, distance
        return msgspec.structs.replace(step, kept=True)

    def _try(self, options: QuantizeOptions) -> tuple[Calibration, float]:
        """Return a calibration, and how far its answers to the held-out samples are."""
        done = calibrate(self.inputs, options)
        with torch.inference_mode():
            errors = answer_errors(self.inputs, done.simulate(), self.held_out, self.wanted)
        return done, errors.divergence

    def _widths(self, strategy: Literal["percentile", "milp"]) -> tuple[dict[str, str], str]:
        """Return a width for every layer, and why they are not tried: "" where they are.

        The weights and the energy of S1's model are at most those of the one width.
        """
        rule = strategy == "percentile"
        analysis = self._analyzed("l2" if rule or not self._has_scores else "jsd")
        pricing = Pricing(analysis.outline)
        one_width = uniform(analysis.outline, self.bits)
        limit = pricing.totals(one_width)
        budgets = {} if rule else {b: limit[b] for b in KEPT}
        options = AllocateOptions(strategy=strategy, bits=RULE if rule else CANDIDATES)
        try:
            record = decide(options, analysis, pricing, budgets)
        except UsageError as exc:
            return {}, f"{exc.message}: {exc.reason}"
        over = [b for b in KEPT if record.costs[b] > limit[b] * SLACK]
        if over:
            more = max(record.costs[b] / limit[b] - 1.0 for b in over)
            return {}, f"{' and '.join(over)} would be up to {more:.1%} above {self.bits.label}"
        widths = {layer.name: layer.option for layer in record.layers}
        same = {name: width.label for name, width in one_width.items()}
        return widths, f"it chooses the widths of {self.bits.label}" if widths == same else ""

    @property
    def _has_scores(self) -> bool:
        """Whether the answers have a distribution, or a task that compares them."""
        return self.inputs.answer in HAVE_PREDICTIONS or self.inputs.task is not None

    def _analyzed(self, metric: Literal["l2", "jsd"]) -> AnalyzeRecord:
        """Return the losses of the layers, measured once: each layer's own output, or the answer's.

        Args:
            metric: ``l2`` is S1 eq. 5.
        """
        if metric not in self._analyses:
            inputs = self.inputs
            options = AnalyzeOptions.of(self.options, metric=metric, bits=CANDIDATES)
            self._analyses[metric] = analyze_model(
                inputs.model, inputs.samples, options, inputs.run, task=inputs.task
            )
        return self._analyses[metric]


def _bytes_of(done: Calibration) -> float:
    """Return the bytes of the layers' weights; those in float have two bytes a value."""
    sizes = {
        str(q.source.target): q.source.meta["val"].numel()
        * (q.format.bits if q.float_reason is None else HALF_BITS)
        / 8
        for q in done.placement.quantizers
        if q.is_weight
    }
    return float(sum(sizes.values()))
