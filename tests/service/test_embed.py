"""POST /v1/embed and /v1/validate: every body, and objects that fail alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.service import schemas
from tests_service_toys import DIM

Make = Callable[..., bytes]


def files(*pairs: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", pair) for pair in pairs]


def one(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    (item,) = schemas.EmbedReply.model_validate(answer.json()).model_dump()["items"]
    return dict(item)
