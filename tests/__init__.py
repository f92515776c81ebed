"""Tests. A module `test_*` says what is tested; the others are what tests need: models, data,
references, doubles. What those assert is explained where it fails, as in the tests themselves."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("[!_]*.py"))
)
