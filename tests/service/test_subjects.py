"""Objects put together from several files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from albireo.observations.errors import BadInput
from albireo.observations.observation import Observation, Scalar
from albireo.service.readiness import probe
from albireo.service.subjects import Subject, as_one, join


def subject(id: str, file: str, *keys: str) -> Subject:
    return Subject(id, file, replace(probe(keys), id=id), sha256=file)


def test_join_makes_one_object_of_an_id() -> None:
    out = join([subject("A", "a", "tok_image"), subject("B", "b", "tok_image"), subject("A", "c", "tok_spectrum_sdss")])
    assert [(s.id, s.file) for s in out] == [("A", "a + c"), ("B", "b")]
    assert out[0].observation is not None
    assert set(out[0].observation.data) == {"tok_image", "tok_spectrum_sdss"}
    assert out[0].sha256 == "a + c"


def test_join_takes_a_repetition_for_what_it_is() -> None:
    (one,) = join([subject("A", "a.csv", "tok_xp_bp"), subject("A", "a.fits", "tok_xp_bp")])
    assert one.error is None
    assert one.file == "a.csv"


def test_join_fails_a_contradiction_alone() -> None:
    other = Subject("A", "b", Observation("A", {"tok_ebv": Scalar(0.7, "mag")}))
    first, second = join([subject("A", "a", "tok_ebv"), other])
    assert first.error is None
    assert second.error is not None
    assert "twice" in second.error.message


def test_join_leaves_failed_files_in_place() -> None:
    bad = Subject(None, "x", error=BadInput("unknown_format", "?"))
    out = join([bad, subject("A", "a", "tok_image"), bad])
    assert [s.file for s in out] == ["x", "a", "x"]


def test_as_one_gives_the_id_and_fails_as_a_whole() -> None:
    parts = [subject("1", "a", "tok_image"), subject("2", "b", "tok_ebv")]
    one = as_one(parts, "NGC 1")
    assert (one.id, one.file) == ("NGC 1", "a + b")
    assert as_one(parts).error is not None
    broken = as_one([*parts, Subject(None, "x", error=BadInput("unknown_format", "?"))], "NGC 1")
    assert broken.error is not None
    assert broken.error.code == "unknown_format"


def test_inputs_are_not_modified() -> None:
    part = subject("1", "a", "tok_image")
    assert part.observation is not None
    before = part.observation.data["tok_image"].flux.copy()  # type: ignore[union-attr]
    as_one([part], "other")
    assert part.observation.id == "1"
    np.testing.assert_array_equal(part.observation.data["tok_image"].flux, before)  # type: ignore[union-attr]
