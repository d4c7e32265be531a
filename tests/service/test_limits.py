"""What was sent unfolds to no more than it may: every bomb is a typed error, before memory is taken."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from fastapi.testclient import TestClient

from albireo.observations.arrow import arrow_table
from albireo.observations.errors import TooLarge
from albireo.observations.observation import Image, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.reading import read_files
from albireo.observations.room import Room, room_for
from albireo.observations.source import Source
from albireo.service import body_bounds
from albireo.service.app import create_app
from albireo.service.readiness import Readiness
from tests.service import bombs

LIMIT = 8 << 20
SLACK = 40 << 20
"""Bytes of memory beside the limit: readers load libraries, and hold what they read twice."""


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """Gives how many bytes of memory this process has held more than when it began, at most (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield lambda: _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def test_the_measure_sees_memory() -> None:
    with peak() as grown:
        text = b"x" * (64 << 20)
    assert len(text) == 64 << 20
    assert grown() >= 48 << 20


@pytest.mark.parametrize(("made", "code"), bombs.BOMBS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_bomb_is_a_typed_error(made: Callable[[], bytes], code: str) -> None:
    source = Source("bomb", made(), LIMIT)
    began = time.process_time()
    with peak() as grown:
        (report,) = read_files([source])
    assert report.error is not None
    assert (report.error.code, report.error.file) == (code, "bomb")
    assert grown() < LIMIT + SLACK
    assert time.process_time() - began < 5


def test_aliases_of_a_header_are_not_unfolded() -> None:
    with peak() as grown:
        read_files([Source("a.ecsv", bombs.ecsv_of_aliases(), LIMIT)])
    assert grown() < SLACK


# What is honest is read as before


@pytest.mark.parametrize("kind", ["GZIP_1", "GZIP_2", "RICE_1", "HCOMPRESS_1", "PLIO_1", "NOCOMPRESS"])
def test_compressed_images_are_read(kind: str) -> None:
    pixels = (np.arange(4 * 96 * 96).reshape(4, 96, 96) % 1000).astype(np.int32)
    cards = {"SURVEY": "LegacySurvey", "BANDS": "griz", "BUNIT": "nanomaggy", "PIXSCALE": 0.262, "OBJECT": "a"}
    image = fits.CompImageHDU(pixels, compression_type=kind, tile_shape=(1, 40, 50))
    image.header.update(cards)
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(stream)
    (report,) = read_files([Source("a.fits", stream.getvalue())])
    assert report.error is None, report.error
    (item,) = report.items
    assert isinstance(item, Observation), item
    read = item.data["tok_image"]
    assert isinstance(read, Image)
    np.testing.assert_array_equal(read.flux, pixels)


def test_lists_of_repeated_texts_are_read() -> None:
    """A dictionary that no limit forbids is unfolded, also within lists."""
    texts = [["x" * 2000, "y"] * 50] * 100
    stream = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"] * 100, "labels": texts}), stream)
    with room_for(1 << 30) as room:
        table = arrow_table(Source("a.parquet", stream.getvalue()))
    assert table.column("labels").to_pylist() == texts
    assert (1 << 30) - room.left > 100 * 50 * 2000


# One room for a request


def test_files_of_a_request_share_a_room() -> None:
    one = gzip.compress(bytes(3 << 20))
    with room_for(8 << 20):
        sources = [Source(f"{n}.gz", one) for n in range(4)]
        reports = read_files(sources)
    codes = [report.error.code if report.error else None for report in reports]
    assert codes == ["unknown_format", "unknown_format", "too_large", "too_large"]
    assert read_files([Source("alone.gz", one)])[0].error.code == "unknown_format"


def _rows() -> list[bytes]:
    return [b"id,flux_g\n" + b"".join(b"a%d,1\n" % n for n in range(100_000))]


def _records() -> list[bytes]:
    return [bombs.avro_of_small_records()]


def _places() -> list[bytes]:
    y, x = np.mgrid[:200, :200] - 99.5
    cards = {
        "SURVEY": "LegacySurvey",
        "BANDS": "griz",
        "BUNIT": "nanomaggy",
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
    }
    cards |= {"CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 100.5, "CRPIX2": 100.5, "CD1_1": -7.3e-5, "CD2_2": 7.3e-5}
    hdu = fits.PrimaryHDU(np.exp(-(x**2 + y**2) / 60) * np.ones((4, 1, 1), ">f4"))
    hdu.header.update(cards)
    stream = io.BytesIO()
    fits.HDUList([hdu]).writeto(stream)
    return [stream.getvalue(), b"id,ra,dec\n" + b"".join(b"%d,150,2\n" % n for n in range(1000))]


@pytest.mark.parametrize("made", [_rows, _records, _places])
def test_objects_have_room_too(made: Callable[[], list[bytes]]) -> None:
    """A row of a few bytes is an object of a thousand, a place in a mosaic one of three hundred thousand."""
    contents, options = made(), ReadOptions(survey="legacysurvey", positions="f1" if made is _places else None)
    with peak() as grown, room_for(16 << 20):
        report, *_ = read_files([Source(f"f{n}", content) for n, content in enumerate(contents)], options)
    assert report.error is not None
    assert report.error.code == "too_large"
    assert "ALBIREO_MAX_DECOMPRESSED_BYTES" in str(report.error)
    assert grown() < 16 * 2 * (1 << 20) + SLACK
    few = [contents[0][: contents[0].index(b"a9,")] if made is _rows else contents[0], *(c[:40] for c in contents[1:])]
    if made is not _records:
        with room_for(16 << 20):
            report, *_ = read_files([Source(f"f{n}", content) for n, content in enumerate(few)], options)
        assert report.error is None, report.error
        assert isinstance(report.items[0], Observation)


def test_a_room_takes_nothing_that_it_cannot_hold() -> None:
    room = Room(100)
    room.take(60)
    with pytest.raises(TooLarge, match="unfolds to more than 100 bytes"):
        room.take(41, "a.fits")
    room.take(40)
    assert room.left == 0


@pytest.fixture
def small(core, settings) -> Iterator[TestClient]:
    """A service whose requests may unfold to 16 MiB, of bodies of 4 MiB."""
    limited = settings.model_copy(update={"max_decompressed_bytes": 16 << 20})
    readiness = Readiness(core, limited.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
    with TestClient(create_app(core, limited, readiness), raise_server_exceptions=False) as made:
        yield made


def test_a_bomb_beside_a_good_file(small: TestClient, image) -> None:
    files = [("a", ("a.fits", image("A"))), ("b", ("b.gz", bombs.gzipped(64 << 20))), ("c", ("c.fits", image("C")))]
    with peak() as grown:
        answer = small.post("/v1/embed", files=files)
    assert answer.status_code == 200
    assert [item["status"] for item in answer.json()["items"]] == ["ok", "error", "ok"]
    assert answer.json()["items"][1]["error"]["code"] == "too_large"
    assert "ALBIREO_MAX_DECOMPRESSED_BYTES" in answer.json()["items"][1]["error"]["fix"]
    assert grown() < 16 * 2 * (1 << 20) + SLACK


def test_many_small_bombs(small: TestClient) -> None:
    one = gzip.compress(bytes(3 << 20))
    with peak() as grown:
        answer = small.post("/v1/validate", files=[("f", (f"{n}.gz", one)) for n in range(40)])
    codes = [row["errors"][0]["code"] if row.get("errors") else row["error"]["code"] for row in answer.json()["files"]]
    assert codes.count("too_large") == 35
    assert grown() < 40 * (3 << 20)


@pytest.mark.parametrize("text", ['{"items":[' + "{}," * 200_000 + "{}]}", '{"items":' + "[" * 300_000])
def test_json_that_becomes_many_objects(small: TestClient, text: str) -> None:
    began = time.process_time()
    with peak() as grown:
        answer = small.post("/v1/embed", content=text, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert grown() < SLACK
    assert time.process_time() - began < 2


def test_json_among_files(small: TestClient, image) -> None:
    text = '{"items":[' + "{}," * 200_000 + "{}]}"
    answer = small.post("/v1/embed", files=[("request", (None, text)), ("a", ("a.fits", image("A")))])
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_honest_json_takes_a_part_of_the_room() -> None:
    spectrum = {"wavelength": [3600.0 + n for n in range(8000)], "flux": [1.25] * 8000}
    text = json.dumps({"items": [{"id": str(n), "inputs": [{"table": spectrum}]} for n in range(20)]}).encode()
    with room_for(1 << 30) as room:
        body_bounds.weigh(text)
    assert room.left > (1 << 30) * 0.98


# Content-Encoding


def send(client: TestClient, content: bytes, encoding: str | None = "gzip"):
    headers = {"Content-Type": "application/fits"} | ({"Content-Encoding": encoding} if encoding else {})
    return client.post("/v1/embed", content=content, headers=headers)


def test_a_gzipped_body(small: TestClient, image) -> None:
    plain = image("A")
    vector = send(small, plain, None).json()["items"][0]["embedding"]
    for encoded in (gzip.compress(plain), gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])):
        answer = send(small, encoded)
        assert answer.status_code == 200, answer.text
        assert answer.json()["items"][0]["embedding"] == vector
    assert send(small, plain, "identity").status_code == 200


def test_gzipped_json(small: TestClient) -> None:
    values = {"flux_g": 1.0, "flux_g_unit": "nanomaggy"}
    read = {"survey": "legacysurvey", "release": "dr10", "system": "AB", "kind": "model", "extinction_corrected": False}
    content = {"items": [{"id": "a", "inputs": [{"values": values, "read": read}]}]}
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = small.post("/v1/embed", content=gzip.compress(json.dumps(content).encode()), headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("content", "encoding", "status", "code"),
    [
        (bombs.gzipped(64 << 20), "gzip", 413, "too_large"),
        (gzip.compress(bytes(10_000))[:-9], "gzip", 400, "request_invalid"),
        (b"this is no gzip", "gzip", 400, "request_invalid"),
        (gzip.compress(bytes(100)) + b"and more", "gzip", 400, "request_invalid"),
        (b"abc", "br", 415, "content_type"),
    ],
    ids=["bomb", "cut", "other", "more", "brotli"],
)
def test_encoded_bodies_that_are_refused(
    small: TestClient, content: bytes, encoding: str, status: int, code: str
) -> None:
    with peak() as grown:
        answer = send(small, content, encoding)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert grown() < SLACK
