"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real survey files; its absence is a failure, never a skip."""
    folder = os.environ.get("ALBIREO_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.fail("set ALBIREO_TEST_DATA to the folder with the real survey files (raw/ and eval/)")
    return Path(folder)
