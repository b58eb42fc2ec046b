"""Start the agent on a board with one command line that works in any shell.

The board's own modules cannot get in the way.

``python3 -I`` leaves out the current folder (the home), PYTHONPATH and the packages of the user.
The program has no character that a shell expands inside single quotes, and imports nothing that the
board could lack before it can say what is lacking.
"""

from __future__ import annotations

# Python 3.6. Arguments: what to do ("run" or "install"), name of the agent's folder, the work
# folder in hexadecimal, and the agent's own. A folder that is not this user's alone counts as
# missing: the agent itself says what is wrong with it, when it is to be put there.
PROGRAM = """
import os, stat, sys
def own(path):
    f = os.lstat(path)
    return f.st_uid == os.geteuid() and not stat.S_ISLNK(f.st_mode) and not f.st_mode & 18
def say(event, **more):
    texts = "".join(', "%s": "%s"' % (k, v.encode("utf-8", "replace").hex()) \
for k, v in more.items())
    print('@trtq {"event": "%s"%s}' % (event, texts), flush=True)
def start():
    how, digest, home = sys.argv[1:4]
    del sys.argv[1:4]
    if how == "install":
        made = {"__name__": "agent", "SOURCE": sys.stdin.buffer.read()}
        exec(compile(made["SOURCE"], "agent.py", "exec"), made)
        return made["main"]
    home = os.path.abspath(os.path.expanduser(\
bytes.fromhex(home).decode("utf-8", "surrogateescape")))
    place = home + "/agents/" + digest
    try:
        whole = all(map(own, (home, home + "/agents", place, place + "/agent.py")))
    except OSError:
        whole = False
    if not whole:
        return say("missing")
    sys.path.insert(0, place)
    import agent
    return agent.main
try:
    main = start()
except BaseException as e:
    say("broken", why=("%s: %s" % (type(e).__name__, e))[:900], \
python=sys.executable + " " + sys.version.split()[0])
    sys.exit(1)
sys.exit(main(sys.argv[1:]) if main else 0)
"""
NEWLINE, QUOTE, APOSTROPHE = (
    "~",
    "^",
    "`",
)  # replacements for characters that a shell, or a string, would interpret


def _flat(program: str) -> str:
    """Return a program as the inside of a string literal on one line."""
    lines = program.strip().replace("    ", " ")
    assert not set(lines) & {NEWLINE, QUOTE, APOSTROPHE, "\\", "$", "!"}
    return lines.replace("\n", NEWLINE).replace('"', QUOTE).replace("'", APOSTROPHE)


_PAIRS = "".join(
    f'.replace("{mark}",chr({ord(char)}))'
    for mark, char in ((NEWLINE, "\n"), (QUOTE, '"'), (APOSTROPHE, "'"))
)
_WORD = f"'exec(\"{_flat(PROGRAM)}\"{_PAIRS})'"


def command(how: str, digest: str, home: str, arguments: str) -> str:
    """Return the command line that starts the agent.

    Args:
        how: ``run``, or ``install`` with the agent on standard input.
        digest: name of the agent's folder.
        home: the work folder, as the user typed it.
        arguments: the agent's own; words without anything that a shell expands.
    """
    return (
        f"python3 -I -c {_WORD} {how} {digest} {home.encode('utf-8', 'surrogateescape').hex()} "
        f"{arguments}"
    )
