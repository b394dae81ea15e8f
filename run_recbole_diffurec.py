"""RecBole-style entry: ``python run_recbole_diffurec.py --model=DiffuRecSys --dataset=amazon-beauty``."""

import sys

from recbole_diffurec.cli import main

if __name__ == "__main__":
    sys.exit(main())
