"""Stand-ins for the programs of a Jetson, copied onto a stand-in board.

They run on Python 3.6 with the standard library alone.

Called as ``nvpmodel``, ``jetson_clocks``, ``tegrastats`` or ``sudo``. Files below ``TRTQ_ROOT`` are
the board's state: ``sudo`` works where ``etc/nopasswd`` is there, the others want its word for what
needs root, as the real ones do.
"""

import os
import re
import subprocess
import sys
import time

ROOT = os.environ.get("TRTQ_ROOT", "/")
GPU = "sys/class/devfreq"


def _path(name):
    return os.path.join(ROOT, name)


def _read(name):
    with open(_path(name)) as handle:
        return handle.read().strip()


def _write(name, text):
    beside = _path(name) + ".new"
    with open(beside, "w") as handle:
        handle.write(text)
    os.replace(beside, _path(name))


def _is_root():
    return os.environ.get("TRTQ_STAND_IN_ROOT") == "1"


def sudo(arguments):
    if arguments[:1] != ["-n"]:
        sys.stderr.write("sudo: a terminal is required to read the password\n")
        return 1
    if not os.path.exists(_path("etc/nopasswd")):
        sys.stderr.write("sudo: a password is required\n")
        return 1
    if (
        os.path.basename(arguments[1]) not in _read("etc/nopasswd").split()
    ):  # the line that trtq asks for allows two programs
        sys.stderr.write("sudo: a password is required\n")
        return 1
    return subprocess.call(arguments[1:], env=dict(os.environ, TRTQ_STAND_IN_ROOT="1"))


def nvpmodel(arguments):
    conf, status = _read("etc/nvpmodel.conf"), _read("var/lib/nvpmodel/status")
    modes = {int(i): n for i, n in re.findall(r"< POWER_MODEL ID=(\d+) NAME=(\S+) >", conf)}
    now = int(re.search(r"pmode:(\d+)", status).group(1))
    if arguments == ["-q"]:
        print("NVPM WARN: fan mode is not set!\nNV Power Mode: %s\n%d" % (modes[now], now))
        return 0
    if arguments[:1] == ["-m"]:
        wanted = int(arguments[1])
        if not _is_root():
            print("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13\nNVPM ERROR: run as root")
            return 1
        if wanted not in modes:
            print("NVPM ERROR: mode index %d is not valid" % wanted)
            return 1
        if "NEEDS_REBOOT %s" % modes[wanted] in conf:
            print("NVPM WARN: Reboot required for changing to this power mode: %d" % wanted)
            print("DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:")
            if sys.stdin.readline().strip().lower() != "yes":
                print("NVPM ERROR: bad input!\nNVPM ERROR: optMask is 1, no request for power mode")
            return 0
        _write("var/lib/nvpmodel/status", "pmode:%04d fmode:fanNull" % wanted)
        _write("var/lib/nvpmodel/changes", _read("var/lib/nvpmodel/changes") + " %d" % wanted)
        return 0
    return 1


def jetson_clocks(arguments):
    node = os.path.join(GPU, os.listdir(_path(GPU))[0])
    if not _is_root():
        print("Error: Run as root!")
        return 1
    if arguments == ["--show"]:
        print(
            "GPU MinFreq=%s MaxFreq=%s CurrentFreq=%s"
            % tuple(_read(node + n) for n in ("/min_freq", "/max_freq", "/cur_freq"))
        )
        return 0
    if arguments[:1] == ["--store"]:
        if os.path.exists(arguments[1]):
            print("Error: %s already exists!" % arguments[1])
            return 1
        with open(arguments[1], "w") as handle:
            handle.write(_read(node + "/min_freq"))
        return 0
    if arguments[:1] == ["--restore"]:
        if len(arguments) < 2 or not os.path.exists(arguments[1]):
            print(
                "Error: %s file not found !"
                % (arguments[1:] or ["/root/.jetsonclocks_conf.txt"])[0]
            )
            return 1
        with open(arguments[1]) as handle:
            _write(node + "/min_freq", handle.read())
        return 0
    _write(node + "/min_freq", _read(node + "/max_freq"))
    _write(node + "/cur_freq", _read(node + "/max_freq"))
    return 0


def tegrastats(arguments):
    interval = (
        int(arguments[arguments.index("--interval") + 1]) / 1000.0
        if "--interval" in arguments
        else 1.0
    )
    lines = _read("tegrastats.txt").splitlines()
    busy = [ln.replace("BUSY ", "", 1) for ln in lines if ln.startswith("BUSY ")]
    idle = [ln for ln in lines if not ln.startswith("BUSY ")]
    while True:
        time.sleep(interval)
        chosen = busy if busy and os.path.exists(_path("busy")) else idle
        sys.stdout.write(chosen[0] + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _NAME = os.path.basename(sys.argv[0])
    try:
        sys.exit(
            {
                "sudo": sudo,
                "nvpmodel": nvpmodel,
                "jetson_clocks": jetson_clocks,
                "tegrastats": tegrastats,
            }[_NAME](sys.argv[1:])
        )
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)
