"""``python -m trtq``."""

import os
import sys

if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # noqa: PTH109
        # Python puts the current folder first: a random.py in it would replace the standard
        # library's.
        sys.path.append(sys.path.pop(0))
    from trtq.cli import main

    main()
