"""``python -m ppl_vae``: the same as the console script ``ppl-vae``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
