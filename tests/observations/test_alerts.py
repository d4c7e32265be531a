"""Alert packets: ZTF by a schema of the same fields, LSST by the schemas and samples of lsst-alert-packet."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import fastavro
import lsst.alert.packet
import numpy as np
import pytest

from albireo.observations import alerts
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.lightcurves import FORMATS
from albireo.observations.observation import LightCurve, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

OPTIONS = ReadOptions()
JD = 2458226.5
SAMPLES = sorted(Path(lsst.alert.packet.__path__[0]).glob("schema/*/*/sample_data/fakeAlert.avro"))


def curve(item: Observation | AlbireoError) -> LightCurve:
    assert isinstance(item, Observation), item
    payload = item.data["lightcurve"]
    assert isinstance(payload, LightCurve)
    return payload


def error_of(item: Observation | AlbireoError) -> AlbireoError:
    assert isinstance(item, AlbireoError), item
    return item


def nullable(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "type": ["null", kind], "default": None}


EPOCH = [
    {"name": "jd", "type": "double"},
    {"name": "fid", "type": "int"},
    {"name": "pid", "type": "long"},
    *(nullable(name, "double") for name in ("diffmaglim", "magpsf", "sigmapsf", "ra", "dec", "rb")),
    nullable("isdiffpos", "string"),
    nullable("candid", "long"),
]
FORCED = [
    *EPOCH[:3],
    *(nullable(name, "double") for name in ("diffmaglim", "magzpsci", "forcediffimflux", "forcediffimfluxunc")),
]
SCHEMA = fastavro.parse_schema(
    {
        "type": "record",
        "name": "alert",
        "namespace": "ztf",
        "fields": [
            {"name": "schemavsn", "type": "string"},
            {"name": "objectId", "type": "string"},
            {"name": "candid", "type": "long"},
            {"name": "candidate", "type": {"type": "record", "name": "candidate", "fields": EPOCH}},
            {
                "name": "prv_candidates",
                "type": [
                    "null",
                    {"type": "array", "items": {"type": "record", "name": "prv_candidate", "fields": EPOCH}},
                ],
                "default": None,
            },
            {
                "name": "fp_hists",
                "type": ["null", {"type": "array", "items": {"type": "record", "name": "fp_hist", "fields": FORCED}}],
                "default": None,
            },
        ],
    }
)


def detection(night: float, pid: int, mag: float | None = 18.9, sign: str | None = "t", fid: int = 1) -> dict[str, Any]:
    found = mag is not None
    return {
        "jd": JD + night,
        "fid": fid,
        "pid": pid,
        "diffmaglim": 20.5,
        "magpsf": mag,
        "sigmapsf": 0.1 if found else None,
        "isdiffpos": sign if found else None,
        "ra": 179.5 if found else None,
        "dec": 52.0 if found else None,
        "candid": 2**60 + pid if found else None,
        "rb": 0.9,
    }


def forced(night: float, pid: int, flux: float = 100.0, zero_point: float = 26.0) -> dict[str, Any]:
    return {
        "jd": JD + night,
        "fid": 1,
        "pid": pid,
        "diffmaglim": 20.4,
        "magzpsci": zero_point,
        "forcediffimflux": flux,
        "forcediffimfluxunc": 10.0 if flux != -99999.0 else -99999.0,
    }


def packet(*past: dict[str, Any], name: str = "ZTF18aaa", **changes: Any) -> dict[str, Any]:
    record = {
        "schemavsn": "4.02",
        "objectId": name,
        "candid": 2**60 + 1,
        "candidate": detection(0, 1),
        "prv_candidates": list(past) or None,
        "fp_hists": None,
    }
    return record | changes


def ztf(*records: dict[str, Any]) -> list[Observation | AlbireoError]:
    out = io.BytesIO()
    fastavro.writer(out, SCHEMA, records)
    source = Source("a.avro", out.getvalue())
    assert next(row[0] for row in FORMATS if row[2](source)) == "ztf_avro"
    return alerts.read_ztf(source, OPTIONS, [])


def test_magnitudes_become_microjansky_with_the_sign_of_isdiffpos() -> None:
    signs = {"t": 1, "1": 1, "f": -1, "0": -1}
    past = [detection(-k - 1, 10 + k, mag=18.9, sign=sign) for k, sign in enumerate(signs)]
    got = curve(ztf(packet(*past))[0])
    assert got.time.tolist() == [58226.0 + n for n in (-4, -3, -2, -1, 0)], "jd - 2400000.5, sorted"
    np.testing.assert_allclose(got.flux, [-100.0, -100.0, 100.0, 100.0, 100.0], rtol=1e-12)
    np.testing.assert_allclose(got.flux_err, 100.0 * 0.1 * math.log(10) / 2.5, rtol=1e-12)
    assert set(got.zero_point.tolist()) == {23.9}
    assert set(got.system.tolist()) == {"AB"}
    assert got.kind == "difference"
    assert not got.extinction_corrected


def test_non_detections_stay_and_filters_are_named() -> None:
    item = ztf(packet(detection(-1, 10, mag=None, fid=2), detection(-2, 11, fid=3)))[0]
    got = curve(item)
    assert isinstance(item, Observation)
    assert got.band.tolist() == ["ZTF-i", "ZTF-r", "ZTF-g"]
    assert got.detected.tolist() == [True, False, True]
    assert np.isnan(got.flux[1])
    assert got.limit[1] == 20.5
    assert "non_detections" in item.flags


def test_ids_are_exact_strings_and_positions_are_the_triggers() -> None:
    item = ztf(packet())[0]
    assert isinstance(item, Observation)
    assert item.id == "ZTF18aaa"
    assert item.metadata["candid"] == str(2**60 + 1)
    assert (item.ra, item.dec) == (179.5, 52.0)
    assert item.metadata["time_scale"] == "UTC"


def test_each_exposure_once_forced_photometry_before_detections() -> None:
    past = [detection(-1, 10), detection(-2, 11, mag=None), detection(-3, 12, mag=None)]
    hists = [forced(-1, 10), forced(-2, 11, flux=-5.0, zero_point=25.0), forced(-3, 12, flux=-99999.0)]
    item = ztf(packet(*past, fp_hists=hists))[0]
    got = curve(item)
    assert isinstance(item, Observation)
    assert got.time.tolist() == [58223.0, 58224.0, 58225.0, 58226.0]
    np.testing.assert_allclose(got.flux, [np.nan, -5.0, 100.0, 100.0])
    assert got.zero_point.tolist() == [23.9, 25.0, 26.0, 23.9], "forced fluxes keep the zero point of their exposure"
    assert got.detected.tolist() == [False, False, True, True]
    assert item.metadata["photometry"] == "forced"
    assert item.metadata["forced_epochs"] == 2, "-99999 is no measurement"
    assert "forced_and_detected" in item.flags


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"isdiffpos": "maybe"}, "value_out_of_range"),
        ({"fid": 4}, "band_unknown"),
        ({"jd": 58226.0}, "time_unit"),
        ({"ra": 400.0}, "value_out_of_range"),
    ],
)
def test_one_bad_alert_fails_alone(change: dict[str, Any], code: str) -> None:
    items = ztf(packet(name="bad", candidate=detection(0, 1) | change), packet(name="good"))
    assert error_of(items[0]).code == code
    assert error_of(items[0]).file == "a.avro"
    assert isinstance(items[1], Observation)


def test_of_two_alerts_of_an_object_the_last_is_kept() -> None:
    items = ztf(packet(), packet(name="other"), packet(detection(-1, 5)))
    assert error_of(items[0]).code == "id_duplicate"
    assert len(curve(items[2]).time) == 2
    assert isinstance(items[1], Observation)


def test_a_truncated_container_is_damaged() -> None:
    out = io.BytesIO()
    fastavro.writer(out, SCHEMA, [packet()])
    with pytest.raises(AlbireoError) as caught:
        alerts.read_ztf(Source("a.avro", out.getvalue()[:-40]), OPTIONS, [])
    assert caught.value.code == "damaged_file"


# LSST


def sample(path: Path) -> tuple[Any, dict[str, Any]]:
    with path.open("rb") as stream:
        reader = fastavro.reader(stream)
        record = next(reader)
        return reader.writer_schema, record  # type: ignore[return-value]


def lsst_items(schema: Any, *records: dict[str, Any]) -> list[Observation | AlbireoError]:
    out = io.BytesIO()
    fastavro.writer(out, schema, records)
    source = Source("l.avro", out.getvalue())
    assert next(row[0] for row in FORMATS if row[2](source)) == "lsst_avro"
    return alerts.read_lsst(source, OPTIONS, [])


def version(path: Path) -> int:
    return int(path.parts[-4])


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: ".".join(p.parts[-4:-2]))
def test_samples_of_every_schema(path: Path) -> None:
    """Samples up to schema 7 say 1480360995 where an MJD belongs: Unix seconds, to be refused."""
    source = Source.from_path(path)
    assert next(row[0] for row in FORMATS if row[2](source)) == "lsst_avro"
    (item,) = alerts.read_lsst(source, OPTIONS, [])
    _, record = sample(path)
    if version(path) < 8:
        assert error_of(item).code == "time_unit"
        return
    got = curve(item)
    assert isinstance(item, Observation)
    assert item.id == str(record["diaObject"]["diaObjectId"]) == "281323062375219201"
    assert item.metadata["dia_source_id"] == "281323062375219200"
    assert got.time.tolist() == sorted(
        source["midpointMjdTai"] for source in [record["diaSource"], *record["prvDiaSources"]]
    )
    assert got.flux.tolist() == [1241.0] * 3
    assert got.flux_err.tolist() == [12.0] * 3
    assert got.band.tolist() == ["LSST-r"] * 3
    assert set(got.zero_point.tolist()) == {31.4}
    assert item.metadata["time_scale"] == "TAI"


def test_samples_are_there() -> None:
    assert {version(path) for path in SAMPLES} >= {3, 7, 8, 11}


def test_old_names_with_real_times() -> None:
    """Schema 3: midPointTai, psFlux, filterName, decl, and limits of visits without detection."""
    schema, record = sample(next(path for path in SAMPLES if version(path) == 3))
    for k, row in enumerate([record["diaSource"], *record["prvDiaSources"]]):
        row |= {"midPointTai": 59000.0 - k, "ccdVisitId": 100 + k, "psFlux": 10.0 + k}
    record["prvDiaNondetectionLimits"] = [
        {"ccdVisitId": 99, "midPointTai": 58000.0, "filterName": "g", "diaNoise": 20.0},
        {"ccdVisitId": 100, "midPointTai": 59000.0, "filterName": "r", "diaNoise": 20.0},
    ]
    (item,) = lsst_items(schema, record)
    got = curve(item)
    assert isinstance(item, Observation)
    assert got.time.tolist() == [58000.0, 58998.0, 58999.0, 59000.0]
    np.testing.assert_array_equal(got.flux, [np.nan, 12.0, 11.0, 10.0])
    assert got.detected.tolist() == [False, True, True, True]
    assert got.band[0] == "LSST-g"
    assert got.limit[0] == pytest.approx(31.4 - 2.5 * math.log10(100.0))
    assert item.dec == record["diaObject"]["decl"]


def test_forced_photometry_of_a_visit_replaces_its_detection() -> None:
    schema, record = sample(SAMPLES[[version(p) for p in SAMPLES].index(11)])
    record["diaSource"] |= {"visit": 7, "midpointMjdTai": 60902.0, "psfFlux": 50.0}
    record["prvDiaSources"] = [dict(record["diaSource"]) | {"visit": 6, "midpointMjdTai": 60901.0, "psfFlux": 40.0}]
    blank = {f["name"]: 0 for f in _fields(schema, "prvDiaForcedSources")}
    record["prvDiaForcedSources"] = [
        blank | {"visit": visit, "midpointMjdTai": time, "psfFlux": flux, "psfFluxErr": 3.0, "band": "i"}
        for visit, time, flux in ((6, 60901.0, 44.0), (5, 60900.0, -2.0))
    ]
    (item,) = lsst_items(schema, record)
    got = curve(item)
    assert isinstance(item, Observation)
    assert got.flux.tolist() == [-2.0, 44.0, 50.0]
    assert got.detected.tolist() == [False, True, True]
    assert "forced_and_detected" in item.flags


def _fields(schema: Any, name: str) -> list[dict[str, Any]]:
    kinds = next(field for field in schema["fields"] if field["name"] == name)["type"]
    array = next(kind for kind in kinds if isinstance(kind, dict))
    fields: list[dict[str, Any]] = array["items"]["fields"]
    return fields


def test_an_alert_of_no_object_is_named_by_its_source() -> None:
    schema, record = sample(SAMPLES[[version(p) for p in SAMPLES].index(11)])
    record["diaObject"] = None
    record["diaSource"] |= {"diaObjectId": None, "ssObjectId": None}
    (item,) = lsst_items(schema, record)
    assert isinstance(item, Observation)
    assert item.id == "281323062375219200"
    assert "no_object_id" in item.flags


def test_a_packet_as_sent_has_no_schema() -> None:
    schema, record = sample(SAMPLES[[version(p) for p in SAMPLES].index(11)])
    out = io.BytesIO(b"\x00" + (1101).to_bytes(4, "big"))
    out.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(out, schema, record)
    source = Source("packet", out.getvalue())
    assert alerts.is_lsst(source)
    with pytest.raises(BadInput) as caught:
        alerts.read_lsst(source, OPTIONS, [])
    assert caught.value.code == "companion_missing"
    assert "11.1" in caught.value.message


@pytest.mark.real
def test_a_real_ztf_alert_equals_fastavro(test_data: Path) -> None:
    path = test_data / "raw" / "ztf" / "472263571115115000.avro"
    with path.open("rb") as stream:
        (record,) = fastavro.reader(stream)
    source = Source.from_path(path)
    assert next(row[0] for row in FORMATS if row[2](source)) == "ztf_avro"
    (item,) = alerts.read_ztf(source, OPTIONS, [])
    got = curve(item)
    assert isinstance(item, Observation)
    rows = [record["candidate"], *record["prv_candidates"]]
    detections = [row for row in rows if row["magpsf"] is not None]
    assert (len(detections), len(rows) - len(detections)) == (1, 11)
    assert int(got.detected.sum()) == 1
    assert int((~got.detected).sum()) == 11
    by_time = sorted(rows, key=lambda row: row["jd"])
    assert got.time.tolist() == [row["jd"] - 2400000.5 for row in by_time]
    assert got.limit.tolist() == [row["diffmaglim"] for row in by_time]
    magnitude = 23.9 - 2.5 * np.log10(got.flux[got.detected])
    assert magnitude[0] == pytest.approx(record["candidate"]["magpsf"], abs=1e-9)
    assert (got.flux_err / got.flux)[got.detected][0] * 2.5 / math.log(10) == pytest.approx(
        record["candidate"]["sigmapsf"], rel=1e-9
    )
    assert item.id == "ZTF17aaajnnn"
    assert item.metadata["candid"] == "472263571115115000"
    assert item.metadata["cutouts"] == ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def test_fields_of_other_types_than_the_surveys() -> None:
    """A container brings its own schema: any field may be anything, and an alert fails alone."""
    fields = [{"name": name, "type": "string"} for name in ("objectId", "candid", "isdiffpos", "candidate")]
    for more in ([], [{"name": "prv_candidates", "type": {"type": "array", "items": "int"}}]):
        out = io.BytesIO()
        record = {"objectId": "ZTF1", "candid": "1", "isdiffpos": "t", "candidate": "none", "prv_candidates": [1]}
        schema = {"type": "record", "name": "alert", "fields": [*fields, *more]}
        fastavro.writer(out, fastavro.parse_schema(schema), [record])
        (item,) = alerts.read_ztf(Source("a.avro", out.getvalue()), OPTIONS, [])
        assert error_of(item).code == "damaged_file"
        assert "ZTF1" in error_of(item).message
