"""Settings: from the environment, typed, unknown keys refused. Read in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from albireo.observations.errors import AlbireoError
from albireo.service.settings import read_settings
try:
    print(read_settings().model_dump_json())
except AlbireoError as error:
    print(error.code, error.field)
"""


def read(**environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ALBIREO_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_read_from_the_environment() -> None:
    text = read(
        ALBIREO_PORT="9000",
        ALBIREO_DATA_FOLDER="/srv/albireo",
        ALBIREO_TEST_DATA="/anywhere",
        ALBIREO_STAR_DATA="/there",
    )
    assert '"port":9000' in text
    assert '"data_folder":"/srv/albireo"' in text
    assert '"host":"127.0.0.1"' in text


@pytest.mark.parametrize(
    ("name", "value"), [("ALBIREO_PROT", "9000"), ("ALBIREO_PORT", "many"), ("ALBIREO_MAX_ITEMS", "0")]
)
def test_unknown_or_wrong_keys_are_refused(name: str, value: str) -> None:
    assert read(**{name: value}) == f"option_invalid {name}"
