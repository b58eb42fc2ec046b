"""``python -m trtq``."""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # Python puts the current folder first: a random.py in it would be taken for the standard library's.
        sys.path.append(sys.path.pop(0))
    from trtq.cli import main

    main()
