"""Power rails of a Jetson, read by the same code that runs on the board.

NVML is never used on a Jetson.
"""

from __future__ import annotations

from pathlib import Path

from trtq.agent import read_rails, sysfs_power
from trtq.errors import MeterError

LINES = Path("etc/nv_tegra_release")


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this machine is a Jetson.

    The release file decides, or the device tree when a container hides that file.
    """
    if (root / LINES).is_file():
        return True
    try:
        return "nvidia,tegra" in (root / "proc/device-tree/compatible").read_text(errors="replace")
    except OSError:
        return False


class JetsonRails:
    """Total power of the INA3221 monitors.

    This is the input rail where there is one, else the sum that the record names.

    Args:
        root: of the file system; tests use another one.

    Raises:
        MeterError: no monitors, or no total among their rails.
    """

    name, counter, min_window_s = "INA3221", False, 20.0

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        _, self.scope = self._total()
        self.limits = [
            "the carrier board is not in it",
            "one step of the sensor is 40 to 150 mW",
            "the CPU that feeds the GPU is in it: that is what the board draws",
        ]

    def _total(self) -> tuple[int, str]:
        total, what = sysfs_power(str(self.root))
        if total is None:
            raise MeterError(
                "Cannot meter this board",
                what if read_rails(str(self.root)) else "there are no INA3221 monitors in sysfs",
            )
        return total, what

    def read(self) -> float:
        """Return watts.

        Raises:
            MeterError: the monitors are gone.
        """
        return self._total()[0] / 1e3
