"""The demo's account of files: one line each, whatever became of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from albireo.service.demo import _groups, _row, _table

FILE = {"file": "a.fits", "format": "fits_image", "n_objects": 1, "companion_of": None, "error": None}


def item(errors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"id": "A", "detected": {"modalities": [{"modality": "image.legacysurvey"}]}, "errors": errors or []}


def test_a_row_says_what_became_of_a_file() -> None:
    good = {"status": "ok", "error": None}
    bad = {"status": "error", "error": {"code": "internal", "message": "why"}}
    assert _row(FILE, [(item(), good)])["result"] == "embedded"
    assert _row(FILE, [(item(), good), (item(), good)])["result"] == "2 embedded"
    assert _row(FILE, [(item(), good), (item(), bad)])["result"] == "1 embedded, 1 not: internal: why"
    assert _row(FILE, [(item([{"code": "no_coverage", "message": "dark"}]), None)])["result"] == "no_coverage: dark"
    assert _row(FILE | {"companion_of": "b.fits"}, [])["result"] == "read together with b.fits"
    error = {"code": "unknown_format", "message": "what?"}
    assert _row(FILE | {"error": error, "format": None}, [])["result"] == "unknown_format: what?"


def test_files_with_the_same_fate_share_a_line() -> None:
    rows = [{"file": f"f{n}", "format": "jpeg", "result": "not_photometric: [x]"} for n in range(9)]
    rows.append({"file": "g", "format": "fits_image", "what": "image", "result": "embedded"})
    table = _table(rows)
    assert table.row_count == 2
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "and 6 more" in text
    assert "not_photometric: [x]" in text


def test_a_folder_goes_into_one_request(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/3"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    files = [tmp_path / name for name in ("a/1", "a/2", "b/3")]
    assert [len(group) for group in _groups(files)] == [2, 1]
