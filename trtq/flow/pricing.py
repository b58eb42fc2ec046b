"""The cost of a layer at a width, by the name of a budget.

Costs come from an analysis, and for latency from the hardware table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trtq.cost.devices import find_device, target_of
from trtq.cost.energy import layer_bitops, layer_energy
from trtq.cost.ops import Kernel
from trtq.cost.roofline import predict
from trtq.quant.formats import FULL, HALF, BitConfig
from trtq.records.analyze import Outline
from trtq.search.budgets import LATENCY, NAMES


class Pricing:
    """Costs by budget name.

    They are bytes of weights, BitOps, energy in S1's unit, and predicted milliseconds on named
    devices.

    Args:
        outline: of the model.
        devices: for latency.
        factors: on predicted latencies, by device.

    Raises:
        UsageError: a device that the hardware table does not have.
    """

    def __init__(
        self,
        outline: Outline,
        devices: Iterable[str] = (),
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.outline = outline
        self.devices = {f"{LATENCY}@{name}": find_device(name) for name in devices}
        self.factors = {
            f"{LATENCY}@{find_device(name).name}": v for name, v in (factors or {}).items()
        }
        self.names = (*NAMES, *self.devices)
        self.kernels = {k.name: k for k in outline.kernels if k.name in outline.layers}
        self.others = [k for k in outline.kernels if k.name not in outline.layers]

    def layer(self, name: str, option: BitConfig, budget: str) -> float:
        """Return what one layer costs.

        Args:
            name: of the layer.
            option: its width.
            budget: one of :attr:`names`.

        Returns:
            Bytes, BitOps, units of energy, or milliseconds.
        """
        counted = self.outline.layers[name]
        if budget == "size":
            return counted.weights * option.weight / 8
        if budget == "bitops":
            return layer_bitops(counted, option.weight, option.input)
        if budget == "energy":
            return layer_energy(counted, option.weight, option.input)
        return self._milliseconds(self.kernels[name], budget, option)

    def fixed(self, budget: str, option: BitConfig = HALF) -> float:
        """Return what the model costs besides its layers; ``option`` is what the rest runs in.

        Args:
            budget: one of :attr:`names`.
            option: what the rest runs in.
        """
        if budget == "size":
            return float(self.outline.other_bytes)
        if budget in self.devices:
            return sum(self._milliseconds(k, budget, option) for k in self.others)
        return 0.0

    def _milliseconds(self, kernel: Kernel, budget: str, option: BitConfig) -> float:
        widths = BitConfig(option.weight, option.input, option.floating)
        return predict(kernel, self.devices[budget], widths).ms * self.factors.get(budget, 1.0)

    def span(self, options: Sequence[BitConfig]) -> tuple[dict[str, float], dict[str, float]]:
        """Return the least and the most the model can cost at these widths, by budget name.

        Args:
            options: candidate widths.
        """
        prices = {
            b: [[self.layer(n, o, b) for o in options] for n in self.outline.layers]
            for b in self.names
        }
        least, most = (
            {b: self.fixed(b) + sum(pick(p) for p in rows) for b, rows in prices.items()}
            for pick in (min, max)
        )
        return least, most

    def totals(self, options: Mapping[str, BitConfig]) -> dict[str, float]:
        """Return the cost of the whole model with a given width per layer and the rest in FP16.

        Args:
            options: the width of every layer, by name.
        """
        return {
            b: self.fixed(b) + sum(self.layer(n, options[n], b) for n in self.outline.layers)
            for b in self.names
        }

    def full(self) -> dict[str, float]:
        """Return the cost of the float model in FP32."""
        return {
            b: self.fixed(b, FULL) + sum(self.layer(n, FULL, b) for n in self.outline.layers)
            for b in self.names
        }


def require_on_devices(options: Sequence[BitConfig], devices: Iterable[str]) -> None:
    """Refuse float formats where a budget of latency names a device without them.

    Args:
        options: candidate widths.
        devices: names.

    Raises:
        UsageError: names the device, and what it lacks.
    """
    for name in devices:
        require_kernels([o for o in options if o.kind != "uniform"], name)


def require_kernels(options: Sequence[BitConfig], target: str) -> None:
    """Refuse widths that a device has no kernels for.

    Args:
        options: candidate widths.
        target: device and release, as ``--target`` takes them.

    Raises:
        UsageError: names the width, the device, and the format that it lacks.
    """
    device = target_of(target)
    for option in options:
        device.require(
            option.computed_in,
            doing="run",
            called=option.label,
            hint="Offer fp16, or leave --target out",
        )


def uniform(outline: Outline, option: BitConfig) -> dict[str, BitConfig]:
    """Return one width for every layer, with the first and the last as wide as engines need them.

    ``trtq quantize --bits`` does the same.

    Args:
        outline: of the model.
        option: the width.

    Returns:
        Widths by layer.
    """
    options = dict.fromkeys(outline.layers, option)
    ends = list(outline.layers)
    options[ends[0]] = options[ends[-1]] = option.at_ends
    return options
