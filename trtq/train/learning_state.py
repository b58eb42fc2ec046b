"""The state that a learning method keeps on disk, so that a stopped run can continue."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trtq.artifact import decode_json, digest_of, write_bytes
from trtq.version import __version__

MORE = "more."  # before the names of other tensors
ADAM = ("exp_avg", "exp_avg_sq", "step")
EVERY_S = 15.0  # a state costs less than a step to write; losing this much is cheap


class _State(msgspec.Struct):
    """The metadata next to the tensors of an interrupted run."""

    key: str
    done: int
    losses: list[float]
    total: int = 0


class LearningState:
    """The parameters, optimizer and random numbers of one learning run, in one safetensors file.

    Args:
        optimizer: Adam; its parameters are what is learned.
        generator: draws the images.
        key: everything the result depends on. A file of another key is never read.
        gpus: whose generators the run draws from, beside the CPU's.
        more: other tensors of the run; :meth:`load` replaces them.

    Attributes:
        total: steps that are done in the end, 0 before that is known.
    """

    def __init__(
        self,
        optimizer: torch.optim.Adam,
        generator: torch.Generator,
        *,
        key: object,
        gpus: Sequence[int] = (),
        more: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.optimizer, self.generator, self.gpus = optimizer, generator, gpus
        self.more = {} if more is None else more
        self.key = digest_of([key, str(torch.__version__), __version__])
        self.saved = time.monotonic()
        self.total = 0

    def path(self, folder: Path) -> Path:
        """Return the file of this run; its name has the digest of the key."""
        return folder / f"learned-{self.key[:32]}.safetensors"

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def load(self, folder: Path | None) -> tuple[int, list[float]]:
        """Restore what an earlier run left.

        A file that cannot be read whole, or is of another key, counts as none.

        Args:
            folder: of the file; None for no state at all.

        Returns:
            How many steps it did, and its losses; (0, []) when there is no such run.
        """
        if folder is None:
            return 0, []
        try:
            with safe_open(self.path(folder), framework="pt") as handle:
                meta = decode_json((handle.metadata() or {})["state"], _State)
                tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, OSError, KeyError, msgspec.MsgspecError):
            return 0, []
        if meta.key != self.key or not self._fits(tensors):
            return 0, []
        with torch.no_grad():
            for i, p in enumerate(self._parameters()):
                p.copy_(tensors[f"{i}.value"])
                if f"{i}.step" in tensors:
                    self.optimizer.state[p] = {
                        k: tensors[f"{i}.{k}"].to("cpu" if k == "step" else p.device) for k in ADAM
                    }
        self.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["global"])
        for gpu in self.gpus:
            torch.cuda.set_rng_state(tensors[f"cuda.{gpu}"], gpu)
        device = next((p.device for p in self._parameters()), None)
        self.more.clear()
        self.more |= {
            k.removeprefix(MORE): v.to(device) for k, v in tensors.items() if k.startswith(MORE)
        }
        self.total = meta.total
        return meta.done, meta.losses

    def _fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Return whether a file has the parameters of this run and every random state."""
        shapes = {name: value.shape for name, value in tensors.items()}
        states = {"generator", "global", *(f"cuda.{gpu}" for gpu in self.gpus)}
        return states <= shapes.keys() and all(
            shapes.get(f"{i}.value") == p.shape for i, p in enumerate(self._parameters())
        )

    def save(self, folder: Path | None, done: int, losses: list[float], *, last: bool) -> None:
        """Write the state when the last one is 15 s old, or when it is the last.

        Args:
            folder: of the file; None keeps nothing.
            done: finished steps.
            losses: the first and the last so far.
            last: the run is over.
        """
        if folder is None or not (last or time.monotonic() - self.saved >= EVERY_S):
            return
        tensors: dict[str, torch.Tensor] = {
            "generator": self.generator.get_state(),
            "global": torch.get_rng_state(),
            **{f"cuda.{gpu}": torch.cuda.get_rng_state(gpu) for gpu in self.gpus},
        }
        for i, p in enumerate(self._parameters()):
            state: Mapping[str, torch.Tensor] = self.optimizer.state[p]
            tensors[f"{i}.value"] = p.detach().cpu().contiguous()
            # There is none for a parameter that never got a gradient.
            tensors |= {f"{i}.{k}": state[k].cpu().contiguous() for k in ADAM if k in state}
        tensors |= {f"{MORE}{k}": v.cpu().contiguous() for k, v in self.more.items()}
        meta = {"key": self.key, "done": done, "losses": losses, "total": self.total}
        write_bytes(
            self.path(folder), save(tensors, metadata={"state": msgspec.json.encode(meta).decode()})
        )
        self.saved = time.monotonic()
