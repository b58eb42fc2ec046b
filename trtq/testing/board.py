"""A stand-in Jetson.

It has a real sshd on loopback, an unprivileged user, and a tree of files that looks like the
board's own.

``StandInBoard(folder, "nano")`` makes the tree; ``with board.serving():`` starts sshd. Everything
that a real board would answer through NVIDIA's programs is answered by
:mod:`trtq.testing.board_tools` and :mod:`trtq.testing.trtexec`; what runs on it is the real agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtq.testing.trtexec import write_board_trtexec

SSHD = ("/usr/sbin/sshd", "/usr/local/sbin/sshd")
USER = "trtq-board"
HERE = Path(__file__).parent
# A runtime library of CUDA whose device is this machine's memory: for `gcc -shared -fPIC`.
CUDART = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p == 0 ? 2 : 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { memcpy(to, from, n); \
return kind == 1 || kind == 2 ? 0 : 21; }
int cudaDeviceSynchronize(void) { return 0; }
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of board.

    Files are below the root; texts are as the kernel and NVIDIA's programs write them.
    """

    model: str
    soc: str
    release: str
    trtexec: str
    sm: str
    library: str
    memory_kb: int
    modes: tuple[str, ...]
    gpu: str
    files: Mapping[str, str] = field(default_factory=dict)
    busy: Mapping[str, str] = field(
        default_factory=dict
    )  # what the rails show while an engine runs
    tegrastats: tuple[str, ...] = ()
    trtexec_place: str = "usr/src/tensorrt/bin/trtexec"


def _iio(rails: Mapping[str, int]) -> dict[str, str]:
    """Return an INA3221 as JetPack 4 shows it."""
    base = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {}
    for i, (name, mw) in enumerate(rails.items()):
        files[f"{base}/rail_name_{i}"], files[f"{base}/in_power{i}_input"] = name, str(mw)
    return files


def _hwmon(rails: Mapping[str, int], number: int = 3) -> dict[str, str]:
    """Return an INA3221 as JetPack 5 and later show it.

    Each rail has 5 V and the rest in mA. The sum of shunts is there, too, and is no rail.
    """
    base = f"sys/class/hwmon/hwmon{number}"
    files = {
        f"{base}/name": "ina3221",
        f"{base}/in7_label": "sum of shunt voltages",
        f"{base}/in7_input": "5",
    }
    for i, (name, mw) in enumerate(rails.items(), start=1):
        files |= {
            f"{base}/in{i}_label": name,
            f"{base}/in{i}_input": "5000",
            f"{base}/curr{i}_input": str(mw // 5),
        }
    return files


XAVIER_LINE = (
    "01-01-1970 00:01:01 RAM 2190/31928MB (lfb 6400x4MB) SWAP 0/15964MB (cached 0MB) CPU "
    "[3%@1190,1%@1190,off,off] EMC_FREQ 0% GR3D_FREQ "
    "{load}% "
    "AO@36C GPU@36.5C PMIC@50C AUX@36C CPU@37C thermal@36.4C GPU {gpu}mW/{gpu}mW CPU "
    "620mW/620mW SOC 930mW/930mW CV 0mW/0mW "
    "VDDRQ 310mW/310mW "
    "SYS5V 1800mW/1800mW"
)
KINDS: Mapping[str, Kind] = {
    "nano": Kind(
        model="NVIDIA Jetson Nano Developer Kit",
        soc="tegra210",
        sm="5.3",
        trtexec="v8201",
        library="8.2.1",
        memory_kb=4059712,
        release="# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, "
        "DATE: Sat Feb 19 17:05:08 UTC 2022",
        modes=("MAXN", "5W"),
        gpu="57000000.gpu",
        files=_iio({"POM_5V_IN": 2000, "POM_5V_GPU": 40, "POM_5V_CPU": 400}),
        busy=_iio({"POM_5V_IN": 6000, "POM_5V_GPU": 3000, "POM_5V_CPU": 900}),
    ),
    "xavier": Kind(
        model="Jetson-AGX",
        soc="tegra194",
        sm="7.2",
        trtexec="v8502",
        library="8.5.2",
        memory_kb=32694272,
        release="# R35 (release), REVISION: 2.1, GCID: 32398013, BOARD: t186ref, EABI: aarch64, "
        "DATE: Sun Jan 22 03:22:38 UTC 2023",
        modes=("MAXN", "MODE_10W", "MODE_15W", "MODE_30W_ALL"),
        gpu="17000000.gv11b",
        tegrastats=(
            XAVIER_LINE.format(load=0, gpu=340),
            "BUSY " + XAVIER_LINE.format(load=99, gpu=8340),
        ),
    ),
    "orin": Kind(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        soc="tegra234",
        sm="8.7",
        trtexec="v100300",
        library="10.3.0",
        memory_kb=7802880,
        gpu="17000000.gpu",
        modes=("15W", "25W", "MAXN_SUPER", "7W"),
        release="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025",
        files=_hwmon({"VDD_IN": 5000, "VDD_CPU_GPU_CV": 800, "VDD_SOC": 1500}),
        busy=_hwmon({"VDD_IN": 15000, "VDD_CPU_GPU_CV": 8800, "VDD_SOC": 2500}),
    ),
    "thor": Kind(
        model="NVIDIA Jetson AGX Thor Developer Kit",
        soc="tegra264",
        sm="11.0",
        trtexec="v101300",
        library="10.13.3",
        memory_kb=128744448,
        gpu="gpu-gpc-0",
        modes=("MAXN", "120W", "90W", "70W"),
        release="# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
        "DATE: Fri Aug 22 00:55:42 UTC 2025",
        files={
            **_hwmon({"VDD_GPU": 3000, "VDD_CPU_SOC_MSS": 6000, "VIN_SYS_5V0": 4000}),
            "sys/class/hwmon/hwmon9/name": "ina238",
            "sys/class/hwmon/hwmon9/power1_input": "30000000",
        },
        busy={"sys/class/hwmon/hwmon9/power1_input": "90000000"},
    ),
}


def find_sshd() -> str | None:
    """Return the path of OpenSSH's server, None where it is not installed."""
    return next((p for p in SSHD if Path(p).is_file()), None)


def free_port() -> int:
    """Return a port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StandInBoard:
    """One stand-in.

    Args:
        folder: made, or used again.
        kind: a key of ``KINDS``, or a kind.
        python: of the board; must be one that an unprivileged user can start.
        sudo: whether sudo works without a password.

    Attributes:
        port: of its sshd.
        identity: a private key that it lets in.
        home: of the user there.
    """

    def __init__(
        self, folder: Path, kind: str | Kind, *, python: str = "/usr/bin/python3", sudo: bool = True
    ) -> None:
        self.folder, self.user = folder, _user()
        self.kind = kind if isinstance(kind, Kind) else KINDS[kind]
        self.root, self.home, self.port = folder / "root", folder / "home", free_port()
        self.identity = folder / "client_key"
        self._sshd: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._make_tree(sudo=sudo)
        self._make_tools()
        self._make_sshd(python)
        self._give_away()

    def _make_tree(self, *, sudo: bool) -> None:
        kind = self.kind
        gpu = f"sys/class/devfreq/{kind.gpu}"
        modes = "".join(f"< POWER_MODEL ID={i} NAME={n} >\n" for i, n in enumerate(kind.modes))
        files = {
            "etc/nv_tegra_release": kind.release + "\n",
            "proc/device-tree/model": kind.model + "\0",
            "proc/device-tree/compatible": f"nvidia,p0000-0000\0nvidia,{kind.soc}\0",
            "etc/nvpmodel.conf": modes,
            "var/lib/nvpmodel/status": "pmode:0000 fmode:fanNull",
            "var/lib/nvpmodel/changes": "",
            f"{gpu}/min_freq": "114750000",
            f"{gpu}/max_freq": "921600000",
            f"{gpu}/cur_freq": "114750000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "102000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1479000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "102000",
            "sys/class/thermal/thermal_zone0/type": "GPU-therm",
            "sys/class/thermal/thermal_zone0/temp": "36500",
            "sys/class/thermal/thermal_zone1/type": "PMIC-Die",
            "sys/class/thermal/thermal_zone1/temp": "100000",
            "sys/class/thermal/cooling_device0/type": "gpu-throttle-alert",
            "sys/class/thermal/cooling_device0/cur_state": "0",
            "proc/sys/kernel/random/boot_id": str(uuid.uuid4()),
            "tegrastats.txt": "\n".join(kind.tegrastats) + "\n",
            "proc/meminfo": self._meminfo(0.6),
            f"usr/lib/aarch64-linux-gnu/libnvinfer.so.{kind.library}": "",
            **kind.files,
            "busy.json": json.dumps(
                {**kind.busy, "proc/meminfo": self._meminfo(0.5), f"{gpu}/cur_freq": "921600000"}
            ),
        }
        if sudo:
            files["etc/nopasswd"] = "nvpmodel jetson_clocks"
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _meminfo(self, free: float) -> str:
        total = self.kind.memory_kb
        return (
            f"MemTotal: {total} kB\nMemAvailable: {int(total * free)} kB\nSwapTotal: 2029852 "
            "kB\nSwapFree: 2029852 kB\n"
        )

    def _make_tools(self) -> None:
        for name in ("sudo", "nvpmodel", "jetson_clocks", "tegrastats"):
            if name == "tegrastats" and not self.kind.tegrastats:
                continue
            path = self.root / "usr/sbin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/usr/bin/python3\n{(HERE / 'board_tools.py').read_text()}")
            path.chmod(0o755)
        true = self.root / "usr/bin/true"
        true.parent.mkdir(parents=True, exist_ok=True)
        true.write_text("#!/bin/sh\nexit 0\n")
        true.chmod(0o755)
        write_board_trtexec(self.root / self.kind.trtexec_place, self.kind.trtexec, sm=self.kind.sm)

    def _make_sshd(self, python: str) -> None:
        self.home.mkdir(exist_ok=True)
        binaries = self.folder / "bin"
        binaries.mkdir(exist_ok=True)
        (binaries / "python3").unlink(missing_ok=True)
        (binaries / "python3").symlink_to(python)
        self._make_packages(Path(python))
        login = self.folder / "login.sh"
        login.write_text(
            f"cd '{self.home}' || exit 1\nexport HOME='{self.home}' TRTQ_ROOT='{self.root}'\n"
            f"export PATH='{binaries}':/usr/bin:/bin\n"
            f"export TRTQ_CUDART='{self.folder}/libcudart.so'\n"
            "echo 'Welcome to this board: login scripts may print what they like'\n"
            'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        for name in ("host_key", "client_key"):
            path = self.folder / name
            if not path.is_file():
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)],  # noqa: S607
                    check=True,
                )
        self._authorize()
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\n"
            f"PidFile {self.folder}/sshd.pid\nStrictModes no\nUsePAM no\nPasswordAuthentication "
            "no\nKbdInteractiveAuthentication no\n"
            f"ForceCommand /bin/sh {login}\nMaxStartups 100\nMaxSessions 100\nSubsystem sftp "
            "internal-sftp\n"
        )

    def _make_packages(self, python: Path) -> None:
        """Make ``python/`` what dist-packages is on a board.

        The agent leaves PYTHONPATH out, but not what the system installed.
        """
        (self.folder / "pyvenv.cfg").write_text(
            f"home = {python.resolve().parent}\ninclude-system-site-packages = true\n"
        )
        line = f"import sys; sys.path.insert(0, {str(self.folder / 'python')!r})\n"
        for minor in range(6, 16):  # whichever it is
            packages = self.folder / f"lib/python3.{minor}/site-packages"
            packages.mkdir(parents=True, exist_ok=True)
            (packages / "board.pth").write_text(line)

    def _authorize(self) -> None:
        (self.folder / "authorized_keys").write_text((self.folder / "client_key.pub").read_text())

    def _give_away(self) -> None:
        """Let the user have everything but the client's key."""
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self.user)
            for path in (self.folder, *self.folder.rglob("*")):
                if not path.name.startswith("client_key"):
                    os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
            for parent in self.folder.parents:
                if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o077 == 0:
                    parent.chmod(0o711)

    def as_user(self, line: list[str]) -> list[str]:
        """Return a command line that runs as the board's user."""
        if os.geteuid() != 0:
            return line
        entry = pwd.getpwnam(self.user)
        return [
            "setpriv",
            f"--reuid={entry.pw_uid}",
            f"--regid={entry.pw_gid}",
            "--clear-groups",
            "--",
            *line,
        ]

    @property
    def address(self) -> str:
        """As for ``trtq device add``."""
        return f"{self.user}@127.0.0.1:{self.port}"

    def fingerprint(self) -> str:
        """Return the fingerprint of the host key, ``SHA256:...``."""
        words = ["ssh-keygen", "-lf", str(self.folder / "host_key.pub")]
        shown = subprocess.run(words, check=True, capture_output=True, text=True)
        return shown.stdout.split()[1]

    @contextlib.contextmanager
    def serving(self) -> Iterator[StandInBoard]:
        """Let the board be on."""
        self.switch_on()
        try:
            yield self
        finally:
            self.switch_off()

    def switch_on(self) -> None:
        """Start sshd and wait until it answers."""
        sshd = find_sshd()
        assert sshd is not None
        with (self.folder / "sshd.log").open("ab") as log:
            self._sshd = subprocess.Popen(
                self.as_user([sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 10.0
        while time.monotonic() < until:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1.0),
            ):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "sshd.log").read_text()[-500:])

    def switch_off(self) -> None:
        """End sshd and everything that runs there, as a power cut does."""
        for _ in range(20):
            process_ids = self.processes()
            if not process_ids:
                break
            for pid in process_ids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None

    def reboot(self, off_s: float = 0.3) -> None:
        """Cut the power and switch on again; pinned clocks are gone, the power mode stays."""
        self.switch_off()
        (self.root / "proc/sys/kernel/random/boot_id").write_text(str(uuid.uuid4()))
        (self.root / f"sys/class/devfreq/{self.kind.gpu}/min_freq").write_text("114750000")
        (self.root / "busy").unlink(missing_ok=True)
        time.sleep(off_s)
        self.switch_on()

    def processes(self, containing: str = "") -> list[int]:
        """Return the processes that were started through this board.

        Only those with ``containing`` in their command line are returned.
        """
        mine, process_ids = str(self.folder).encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                if (
                    (mine in line or mine in environ)
                    and containing.encode() in line
                    and int(entry.name) != os.getpid()
                ):
                    process_ids.append(int(entry.name))
        return process_ids

    def new_host_key(self) -> None:
        """Change the host key, as flashing does."""
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        file = str(self.folder / "host_key")
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file]
        subprocess.run(make_key, check=True)
        self._give_away()

    def add_tensorrt(self, inputs: Mapping[str, str] | None = None) -> bool:
        """Give the board's Python the TensorRT of its release and a CUDA runtime.

        Return False where there is no C compiler for the latter.

        Args:
            inputs: types of integer inputs by name, whose products an engine sums; default: engines
                pool one float32 input.
        """
        from trtq.testing.tensorrt import NAMES

        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            return False
        (self.folder / "python").mkdir(exist_ok=True)
        shutil.copy(HERE / "board_tensorrt.py", self.folder / "python/tensorrt.py")
        settings: dict[str, object] = {
            "release": [int(v) for v in self.kind.library.split(".")[:2]],
            "names": NAMES,
        }
        settings |= {"io": {"inputs": dict(inputs)}} if inputs is not None else {}
        (self.folder / "python/release.json").write_text(json.dumps(settings))
        (self.folder / "cudart.c").write_text(CUDART)
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                "-o",
                str(self.folder / "libcudart.so"),
                str(self.folder / "cudart.c"),
            ],
            check=True,
            capture_output=True,
        )
        self._give_away()
        return True


def _user() -> str:
    """Return who logs in: an unprivileged user, made where this runs as root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        pwd.getpwnam(USER)
    except KeyError:
        line = [
            "useradd",
            "--system",
            "--shell",
            "/bin/sh",
            "--no-create-home",
            "--home-dir",
            "/",
            USER,
        ]
        subprocess.run(line, check=True, capture_output=True)
    return USER
