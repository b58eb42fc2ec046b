"""Facts that the agent reports about a board, and their consequences for a build."""

from __future__ import annotations

import msgspec

from trtq.bench.machine_card import Card, JetsonCard
from trtq.bench.record import RowSettings
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import BoardAnswer, BoardFacts, hint_words
from trtq.errors import BoardError
from trtq.export.calibration_cache import version_of
from trtq.platform.catalogue import board_row
from trtq.platform.releases import Version, releases, shown
from trtq.platform.target import Target


class Lack(msgspec.Struct, frozen=True):
    """A defect of a board.

    Attributes:
        what: in words.
        mend: the command that fixes it, "" for none.
    """

    what: str
    mend: str


class Board(BoardFacts, frozen=True, kw_only=True):
    """A probed board.

    Attributes:
        missing: what is not as it should be.
    """

    missing: list[Lack]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.model or (f"a {self.soc} board" if self.soc else "a machine that is no Jetson")

    @property
    def has_trtexec(self) -> bool:
        """Whether there is a trtexec that starts."""
        return self.trtexec is not None and self.trtexec.number is not None

    @property
    def number(self) -> int | None:
        """The TensorRT that builds here, in trtexec's numbering: 8201 is 8.2.1, 100300 is 10.3.0.

        Where there is no trtexec that starts it is that of the library; None without one.
        """
        if self.trtexec is not None and self.trtexec.number is not None:
            return self.trtexec.number
        if self.tensorrt is None:
            return None
        major, minor, patch = map(int, self.tensorrt.split("."))
        return major * (1000 if major < 10 else 10000) + minor * 100 + patch

    @property
    def release(self) -> Version:
        """Major and minor version of that TensorRT.

        Raises:
            BoardError: there is none, or one older than trtq knows.
        """
        if self.number is None:
            raise BoardError(
                f"There is no TensorRT on {self.name}",
                "no libnvinfer, no trtexec",
                "on the board: sudo apt-get install nvidia-jetpack",
            )
        version = version_of(self.number)
        oldest, row = releases().oldest, board_row(self.board)
        if version < oldest:
            raise BoardError(
                f"Cannot build on {self.name}",
                f"it has TensorRT {shown(version)} (JetPack {self.jetpack}), trtq knows it from "
                f"{shown(oldest)} on",
                "Flash a newer JetPack" if row is None else f"Flash JetPack {row.jetpacks[1]}",
            )
        return version

    @property
    def target(self) -> Target:
        """The board as a target to build for.

        Raises:
            BoardError: it is no Jetson.
            UsageError: its TensorRT has no kernels for it.
        """
        if self.capability is None:
            device_names = ", ".join(self.compatible[:3]) or "no device tree"
            raise BoardError(
                f"{self.name} cannot be deployed to",
                f"it is no Jetson that trtq knows ({device_names})",
                "trtq build builds on this machine",
            )
        name = self.board or f"sm{self.capability.replace('.', '')}"
        return Target.parse(f"{name}@{shown(self.release)}")

    @property
    def workspace(self) -> int | None:
        """Scratch memory to build with, MiB; None for what there is."""
        total, row = self.memory.get("MemTotal"), board_row(self.board)
        return None if total is None or row is None else row.workspace_for(total)

    def card(self, settings: RowSettings) -> Card:
        """Return the machine card of records for what held during the measurement.

        Args:
            settings: of the measured row: its power mode and clocks.
        """
        jetson = JetsonCard(
            model=self.model,
            soc=self.soc,
            l4t=self.l4t,
            jetpack=self.jetpack,
            power_mode=settings.power_mode,
            clocks=settings.clocks,
            gpu_max_hz=self.clocks.gpu.max_freq,
        )
        silent = (k for k, v in msgspec.structs.asdict(jetson).items() if v is None)
        return Card(
            kind="jetson",
            host=self.user,
            cpu=self.machine,
            container="docker" if self.container else "none seen",
            jetson=jetson,
            kernel=self.kernel,
            memory_bytes=self.memory.get("MemTotal"),
            tensorrt=self.tensorrt,
            trtexec=self.number,
            python=self.python,
            missing=dict.fromkeys(("cores", "governor", "affinity"), "not asked of a board")
            | dict.fromkeys(silent, "the board does not say"),
        )

    @property
    def lines(self) -> list[str]:
        """Lines for a person."""
        return [*self._identity, *self._state, *self._advice]

    @property
    def _identity(self) -> list[str]:
        """Hardware, software, memory and disk."""
        trtexec = self.trtexec.path if self.trtexec else "not there"
        module = "there" if self.tensorrt_python else "not there"
        free, total = self.memory.get("MemAvailable"), self.memory.get("MemTotal")
        swap = self.memory.get("SwapTotal")
        return [
            f"{self.name}, {self.soc or 'unknown SoC'}, compute capability "
            f"{self.capability or 'unknown'}",
            f"JetPack {self.jetpack or 'unknown'} (L4T {self.l4t or 'unknown'}), kernel "
            f"{self.kernel}, Python {self.python}",
            f"TensorRT {self.tensorrt or 'unknown'}; trtexec {trtexec}; Python module {module}",
            f"memory {_gb(free)} free of {_gb(total)}, swap {_gb(swap) if swap else 'none'}; "
            f"disk {_gb(self.disk.free)} free at {self.home}",
        ]

    @property
    def _state(self) -> list[str]:
        """Power mode, clocks, power and temperature, and who holds them."""
        mode, watts = self.power_mode, self.power
        modes = f" of {', '.join(mode.modes)}" if mode.modes else ""
        pinned = "pinned" if self.clocks.pinned else "not pinned"
        sudo = "without password" if self.root else "needs a password"
        power = f"n/a: {watts.what}"
        if watts.mw is not None:
            power = f"now {watts.mw / 1e3:.2f} W ({watts.what}, {watts.source})"
        state = [
            f"power mode {mode.name or 'unknown'}{modes}; clocks {pinned}; sudo {sudo}",
            f"power {power}",
        ]
        if self.meanwhile is not None:
            clocks = ", clocks pinned" if self.meanwhile.pinned else ""
            state.append(
                f"a job holds the power mode {self.meanwhile.mode or 'unknown'}{clocks} now; "
                "the mode above is restored after it"
            )
        if self.temperatures:
            hottest = max(self.temperatures, key=lambda k: self.temperatures[k])
            state.append(f"hottest {self.temperatures[hottest]:.1f} C ({hottest})")
        return state

    @property
    def _advice(self) -> list[str]:
        """Notes about this kind of board, and what is missing on this one."""
        row = board_row(self.board)
        notes = row.notes if row is not None else ()
        missing = (f"{m.what}{'; ' + m.mend if m.mend else ''}" for m in self.missing)
        return [*(f"note: {note}" for note in notes), *(f"missing: {text}" for text in missing)]


def _gb(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e9:.2f} GB"


def probe(agent: Agent) -> Board:
    """Return what a board is.

    Settings that an interrupted job left on an idle board are restored first.

    Raises:
        DeviceError: it cannot be reached, or its answer cannot be read.
    """
    answer = agent.ask("probe", BoardAnswer)
    missing = [Lack(m.what, hint_words(m.mend, agent.device.name)) for m in answer.missing]
    facts = {name: getattr(answer, name) for name in BoardFacts.__struct_fields__}
    return Board(**facts, missing=missing)
