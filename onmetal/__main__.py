"""`python -m onmetal`, for where the environment's programs are not on PATH."""

import os
import sys

# Python puts the current folder first: nothing in it is to be imported in the place of a package.
if sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109  as Python has it
    del sys.path[0]

from onmetal.cli import main

sys.exit(main())
