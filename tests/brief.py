"""`deploy`, but that `--quick` measures for an instant: python tests/brief.py WORDS"""

import sys

from onmetal import cli
from onmetal.profilers.measure import MODES, Schedule

BRIEF = Schedule(2, 3, 0.01, 0.01, 0.0, 1)

if __name__ == "__main__":
    MODES["quick"] = BRIEF
    sys.exit(cli.main(sys.argv[1:]))
