"""``python -m trtq``."""

from trtq.cli import main

main()
