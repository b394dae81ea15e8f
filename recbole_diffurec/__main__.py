"""``python -m recbole_diffurec`` is the command ``recbole-diffurec``."""

import sys

from recbole_diffurec.cli import main

if __name__ == "__main__":  # processes that a run spawns import this module too
    sys.exit(main())
