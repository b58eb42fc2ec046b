"""``python -m trtq``."""

from trtq.cli import main

if __name__ == "__main__":
    main()
