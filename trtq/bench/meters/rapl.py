"""RAPL: the energy counter of a CPU package, where the system lets a user read it."""

from __future__ import annotations

from pathlib import Path

from trtq.errors import MeterError

ZONES = Path("sys/class/powercap")


class Rapl:
    """Sum over the CPU packages of this host.

    Args:
        root: of the file system; another one in tests.

    Raises:
        MeterError: no counters, or only root may read them.
    """

    name, scope, counter, min_window_s = "RAPL", "CPU package", True, 10.0

    def __init__(self, root: Path = Path("/")) -> None:
        # A zone called psys holds the whole platform, packages included.
        self.zones = sorted(
            z for z in (root / ZONES).glob("intel-rapl:*") if _name(z).startswith("package")
        )
        if not self.zones:
            raise MeterError(
                "Cannot meter this CPU",
                "it has no RAPL counters, or this machine is virtual and hides them",
            )
        self.wraps = {z: _number(z / "max_energy_range_uj") for z in self.zones}
        self.seen = {z: _number(z / "energy_uj") for z in self.zones}
        self.total = 0.0
        self.limits = [
            "memory is in it on some CPUs only",
            "refreshed about every millisecond",
            "disks, fans and power supply are not in it",
        ]

    def read(self) -> float:
        """Return joules since this meter was made; counter wraparound is handled.

        A counter that wraps twice between two reads loses a round.

        Raises:
            MeterError: a counter cannot be read.
        """
        for zone in self.zones:
            now = _number(zone / "energy_uj")
            step = now - self.seen[zone]
            self.total += (step if step >= 0 else step + self.wraps[zone]) / 1e6
            self.seen[zone] = now
        return self.total


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as exc:
        raise MeterError(
            "Cannot meter this CPU", f"only root may read {path}", f"sudo chmod a+r {path}"
        ) from exc
    except (OSError, ValueError) as exc:
        raise MeterError("Cannot meter this CPU", f"{path} holds no number ({exc})") from exc
