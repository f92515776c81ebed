"""`python -m onmetal`, for where the environment's programs are not on PATH."""

import sys

from onmetal.cli import main

sys.exit(main())
