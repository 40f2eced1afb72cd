"""`python launch.py [verb] --config=configs/NAME.py --workdir=runs/NAME --config.train.steps=100`: parse, hand over."""

import sys

from tljax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
