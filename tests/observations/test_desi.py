"""DESI coadds and redrock files: cameras co-added, targets told from sky, redshifts matched by TARGETID."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from albireo.observations import desi, spectra
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Observation, Scalar, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.sky import simulate
from albireo.observations.sky_files import write_desi, write_redrock
from albireo.observations.source import Source

BUNIT = "10**-17 erg/(s cm2 Angstrom)"
BIG = 39627866878511337
"""A TARGETID beyond 2^53: as a float it would be another target."""
GRIDS = {"B": np.arange(0, 40), "R": np.arange(30, 80), "Z": np.arange(70, 120)}


def save(*hdus: Any, name: str = "coadd.fits") -> Source:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList(list(hdus)).writeto(stream)
    return Source(name, stream.getvalue())


def fibermap(n: int, **columns: Any) -> fits.BinTableHDU:
    cells: dict[str, Any] = {
        "TARGETID": BIG + np.arange(n),
        "COADD_FIBERSTATUS": np.zeros(n, np.int32),
        "TARGET_RA": 150.0 + np.arange(n),
        "TARGET_DEC": np.full(n, 2.0),
        "OBJTYPE": ["TGT"] * n,
    } | columns
    kinds = {"i": "K", "f": "D", "U": "3A"}
    return fits.BinTableHDU.from_columns(
        [
            fits.Column(name, kinds[np.asarray(values).dtype.kind], array=values)
            for name, values in cells.items()
            if values is not None
        ],
        name="FIBERMAP",
    )


def cameras(n: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return {
        name: {
            "WAVELENGTH": 3600 + 0.8 * pixels,
            "FLUX": rng.normal(5, 1, (n, len(pixels))).astype(np.float32),
            "IVAR": rng.uniform(0.5, 2, (n, len(pixels))).astype(np.float32),
            "MASK": np.zeros((n, len(pixels)), np.int32),
        }
        for name, pixels in GRIDS.items()
    }


def coadd(
    pixels: dict[str, dict[str, Any]],
    table: fits.BinTableHDU | None,
    unit: str | None = BUNIT,
    name: str = "coadd.fits",
    **cards: Any,
) -> Source:
    primary = fits.PrimaryHDU()
    for card, value in cards.items():
        primary.header[card] = value
    hdus: list[Any] = [primary, *([table] if table is not None else [])]
    for camera, arrays in pixels.items():
        for what, values in arrays.items():
            hdu = fits.ImageHDU(values, name=f"{camera}_{what}")
            if what == "FLUX" and unit:
                hdu.header["BUNIT"] = unit
            hdus.append(hdu)
    return save(*hdus, name=name)


def redrock(ids: Sequence[int], name: str = "redrock.fits", **cards: Any) -> Source:
    n = len(ids)
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=np.array(ids, np.int64)),
            fits.Column("Z", "D", array=0.1 * (1 + np.arange(n))),
            fits.Column("ZERR", "D", array=np.full(n, 1e-4)),
            fits.Column("ZWARN", "K", array=np.arange(n) * 4),
            fits.Column("SPECTYPE", "6A", array=["GALAXY"] * n),
            fits.Column("SUBTYPE", "6A", array=[""] * n),
        ],
        name="REDSHIFTS",
    )
    primary = fits.PrimaryHDU()
    for card, value in cards.items():
        primary.header[card] = value
    return save(primary, table, name=name)


def read(file: Source, companions: Sequence[Source] = (), **options: Any) -> list[Observation | AlbireoError]:
    return desi.read_desi(file, ReadOptions(**options), companions)


def spectrum_of(item: Observation | AlbireoError) -> Spectrum:
    assert isinstance(item, Observation), item
    payload = item.data[desi.KEY]
    assert isinstance(payload, Spectrum)
    return payload


def slow_mean(pixels: dict[str, dict[str, Any]], row: int) -> tuple[list[float], list[float], list[float]]:
    """(wavelength, flux, ivar) one pixel at a time, as anybody would write it."""
    sums: dict[int, list[float]] = {}
    for arrays in pixels.values():
        for i, wavelength in enumerate(arrays["WAVELENGTH"]):
            total = sums.setdefault(round((float(wavelength) - 3600) / 0.8), [0.0, 0.0])
            flux, ivar = float(arrays["FLUX"][row, i]), float(arrays["IVAR"][row, i])
            if "MASK" in arrays and arrays["MASK"][row, i] != 0:
                continue
            if np.isfinite(flux) and np.isfinite(ivar) and ivar > 0:
                total[0] += ivar * flux
                total[1] += ivar
    keys = sorted(sums)
    flux = [sums[k][0] / sums[k][1] if sums[k][1] > 0 else 0.0 for k in keys]
    return [3600 + 0.8 * k for k in keys], flux, [sums[k][1] for k in keys]


# Cameras


def test_cameras_are_coadded_not_concatenated() -> None:
    pixels = cameras(3)
    pixels["B"]["MASK"][1, 35] = 4  # seen by R too
    pixels["R"]["MASK"][1, 20] = 4  # seen by R alone
    pixels["Z"]["FLUX"][2, 5] = np.nan
    pixels["R"]["IVAR"][2, 44] = 0  # Z sees it too
    pixels["Z"]["IVAR"][0, 30] = np.inf
    items = read(coadd(pixels, fibermap(3)))
    assert [item.id for item in items if isinstance(item, Observation)] == [str(BIG + i) for i in range(3)]
    for row, item in enumerate(items):
        spectrum = spectrum_of(item)
        wavelength, flux, ivar = slow_mean(pixels, row)
        assert len(wavelength) == 120
        assert np.allclose(spectrum.wavelength, wavelength, rtol=0, atol=1e-9)
        assert np.allclose(spectrum.flux, flux, rtol=1e-6)
        assert np.allclose(spectrum.ivar, ivar, rtol=1e-6)
        assert np.array_equal(spectrum.mask, np.array(ivar) <= 0)
        assert np.isfinite(spectrum.flux).all()
        assert (spectrum.unit, spectrum.frame, spectrum.medium) == (FLUX_DENSITY, "barycentric", "vacuum")
    flags = [set(item.flags) for item in items if isinstance(item, Observation)]
    assert flags == [{"nan_pixels", "masked_pixels"}, {"masked_pixels"}, {"nan_pixels"}]
    masked = [np.flatnonzero(spectrum_of(item).mask).tolist() for item in items]
    assert masked == [[100], [50], []]


def test_targets_do_not_influence_each_other() -> None:
    n = desi.BLOCK + 3  # more than are co-added at a time
    pixels = cameras(n)
    together = read(coadd(pixels, fibermap(n)))
    for i in (0, 1, desi.BLOCK - 1, desi.BLOCK, n - 1):
        alone = {name: dict(arrays) for name, arrays in pixels.items()}
        for arrays in alone.values():
            arrays |= {what: arrays[what][i : i + 1] for what in ("FLUX", "IVAR", "MASK")}
        (item,) = read(coadd(alone, fibermap(1)))
        assert np.array_equal(spectrum_of(item).flux, spectrum_of(together[i]).flux)
        assert np.array_equal(spectrum_of(item).ivar, spectrum_of(together[i]).ivar)


def test_cameras_off_the_grid_are_an_error() -> None:
    for shift in (0.3, 0.002):
        pixels = cameras(1)
        pixels["R"]["WAVELENGTH"] = pixels["R"]["WAVELENGTH"] + shift
        with pytest.raises(BadInput) as caught:
            read(coadd(pixels, fibermap(1)))
        assert caught.value.code == "grid_mismatch"
        assert caught.value.field == "R_WAVELENGTH"
    pixels = cameras(1)
    pixels["R"]["WAVELENGTH"] = pixels["R"]["WAVELENGTH"] + 5e-4
    assert len(spectrum_of(read(coadd(pixels, fibermap(1)))[0]).wavelength) == 120
    pixels["R"]["WAVELENGTH"] = pixels["R"]["WAVELENGTH"][::-1].copy()
    with pytest.raises(BadInput) as caught:
        read(coadd(pixels, fibermap(1)))
    assert caught.value.code == "wavelength_not_monotonic"


def test_cameras_coadded_already_and_missing_ones() -> None:
    rng = np.random.default_rng(3)
    whole = {
        "BRZ": {
            "WAVELENGTH": 10 ** np.linspace(3.56, 3.99, 90),  # no common linear grid is needed for one
            "FLUX": rng.normal(5, 1, (1, 90)).astype(np.float32),
            "IVAR": np.ones((1, 90), np.float32),
        }
    }
    item = read(coadd(whole, fibermap(1)))[0]
    assert np.array_equal(spectrum_of(item).flux, whole["BRZ"]["FLUX"][0])
    assert isinstance(item, Observation)
    assert item.flags == ()
    two = {name: arrays for name, arrays in cameras(1).items() if name != "R"}
    item = read(coadd(two, fibermap(1)))[0]
    spectrum = spectrum_of(item)
    assert isinstance(item, Observation)
    assert "missing_cameras" in item.flags
    assert len(spectrum.wavelength) == 90  # nothing is padded where no camera looked
    assert (np.diff(spectrum.wavelength) > 0).all()


def test_layouts_that_cannot_be_read() -> None:
    def code(file: Source, **options: Any) -> str:
        with pytest.raises(BadInput) as caught:
            read(file, **options)
        assert caught.value.fix
        return caught.value.code

    assert code(coadd(cameras(2), fibermap(3))) == "shape_mismatch"
    assert code(coadd(cameras(2), None)) == "column_missing"
    assert code(coadd(cameras(1), fibermap(1, TARGETID=None))) == "column_missing"
    assert code(coadd(cameras(1), fibermap(1), unit="electron / Angstrom")) == "unit_unknown"
    assert code(coadd(cameras(1), fibermap(1)), survey="sdss") == "statement_conflict"
    assert code(coadd(cameras(1), fibermap(1)), medium="air") == "statement_conflict"
    short = cameras(1)
    short["Z"]["IVAR"] = short["Z"]["IVAR"][:, 1:]
    assert code(coadd(short, fibermap(1))) == "shape_mismatch"
    bare = cameras(1)
    del bare["Z"]["IVAR"]
    assert code(coadd(bare, fibermap(1))) == "column_missing"


def test_units_are_honoured() -> None:
    pixels = cameras(1)
    plain, scaled = (
        spectrum_of(read(coadd(pixels, fibermap(1), unit=unit))[0]) for unit in (None, "1e-16 erg/(s cm2 Angstrom)")
    )
    assert np.allclose(scaled.flux, 10 * plain.flux)
    assert np.allclose(scaled.ivar, plain.ivar / 100)


# Targets


def test_sky_and_idle_fibres_are_no_targets() -> None:
    table = fibermap(4, OBJTYPE=["TGT", "SKY", "", "TGT"], TARGETID=[BIG, 616088619186127404, -2713437, -5])
    items = read(coadd(cameras(4), table))
    assert isinstance(items[0], Observation)
    errors = [item for item in items if isinstance(item, AlbireoError)]
    assert [error.code for error in errors] == ["not_a_target"] * 3
    assert "616088619186127404" in str(errors[0])
    assert errors[0].file == "coadd.fits"


def test_a_target_without_a_good_pixel_fails_alone() -> None:
    pixels = cameras(3)
    for arrays in pixels.values():
        arrays["IVAR"][1] = 0
    items = read(coadd(pixels, fibermap(3)))
    assert [isinstance(item, Observation) for item in items] == [True, False, True]
    assert isinstance(items[1], AlbireoError)
    assert items[1].code == "no_coverage"
    assert str(BIG + 1) in str(items[1])


def test_fiberstatus_is_a_flag() -> None:
    items = read(coadd(cameras(2), fibermap(2, COADD_FIBERSTATUS=[0, 8])))
    assert [item.flags for item in items if isinstance(item, Observation)] == [(), ("fiberstatus",)]


def test_exposures_of_a_target_are_coadded() -> None:
    pixels = cameras(5)
    ids = [BIG + 1, BIG, BIG + 1, BIG, BIG + 1]
    table = fibermap(5, TARGETID=ids, COADD_FIBERSTATUS=None, FIBERSTATUS=[0, 0, 0, 0, 2])
    items = read(coadd(pixels, table))
    assert [item.id for item in items if isinstance(item, Observation)] == [str(BIG + 1), str(BIG)]
    for item, rows in zip(items, ([0, 2], [1, 3]), strict=True):
        spectrum = spectrum_of(item)
        ivar = np.sum([slow_mean(pixels, row)[2] for row in rows], axis=0)
        flux = np.sum([np.multiply(*slow_mean(pixels, row)[1:]) for row in rows], axis=0) / ivar
        assert np.allclose(spectrum.flux, flux, rtol=1e-6)
        assert np.allclose(spectrum.ivar, ivar, rtol=1e-6)
    first, second = items
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    assert first.flags == ("exposures_coadded", "exposures_left_out")
    assert second.flags == ("exposures_coadded",)
    assert first.metadata["rows"] == (0, 2)


def test_photometry_of_the_fibermap() -> None:
    table = fibermap(
        3,
        PHOTSYS=["S", "N", ""],
        RELEASE=[9010, 9011, 0],
        FLUX_G=[1.0, 2.0, 3.0],
        FLUX_IVAR_G=[4.0, 25.0, 1.0],
        FLUX_Z=[0.0, -0.5, 1.0],
        FLUX_IVAR_Z=[0.0, 16.0, 1.0],
        FLUX_W1=[np.nan, 7.0, 1.0],
        FLUX_IVAR_W1=[1.0, 1.0, 1.0],
        EBV=[0.05, 0.02, 0.0],
        SHAPE_R=[0.0, 0.4, 0.0],
        SHAPE_E1=[0.0, 0.1, 0.0],
    )
    south, north, none = read(coadd(cameras(3), table))
    assert isinstance(south, Observation)
    assert isinstance(north, Observation)
    assert isinstance(none, Observation)
    # An inverse variance of 0 is "not observed": no flux of 0 is invented.
    assert south.data.keys() == {desi.KEY, "tok_flux_g", "tok_ebv"}
    flux = south.data["tok_flux_g"]
    assert isinstance(flux, Scalar)
    assert (flux.value, flux.unit, flux.error) == (1.0, "nanomaggy", 0.5)
    convention = flux.convention
    assert convention is not None
    assert (convention.survey, convention.band, convention.system, convention.kind) == (
        "legacysurvey", "DES-G", "AB", "model",
    )  # fmt: skip
    assert (convention.extinction_corrected, convention.release) == (False, "dr9")
    assert south.provenance["tok_flux_g"].survey == "legacysurvey"
    assert north.data.keys() == {
        desi.KEY, "tok_flux_g", "tok_flux_z", "tok_flux_w1", "tok_ebv", "tok_shape_r", "tok_shape_e1",
    }  # fmt: skip
    negative, blue = north.data["tok_flux_z"], north.data["tok_flux_g"]
    assert isinstance(negative, Scalar)
    assert isinstance(blue, Scalar)
    assert (negative.value, negative.error) == (-0.5, 0.25)
    assert blue.convention is not None
    assert blue.convention.band == "BASS-G"
    assert north.flags == ("northern_filters",)
    assert none.data.keys() == {desi.KEY}


# Redshifts


def test_redrock_completes_a_coadd_by_targetid() -> None:
    file = coadd(cameras(3), fibermap(3))
    table = redrock([999, BIG + 2, BIG])  # another order, a row too many, one target missing
    assert desi.completes(file, table, ReadOptions())
    assert not desi.completes(table, file, ReadOptions())
    items = read(file, [table])
    first, second, third = (item for item in items if isinstance(item, Observation))
    assert first.metadata["redshift"] == pytest.approx(0.3)
    assert third.metadata["redshift"] == pytest.approx(0.2)
    assert first.metadata["class"] == "GALAXY"
    assert "redshift" not in second.metadata
    assert (first.flags, second.flags, third.flags) == (("zwarning",), ("no_redrock_row",), ("zwarning",))
    assert "tok_z" not in first.data
    assert read(file)[1].flags == ()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*Error validating header")
def test_redrock_of_other_spectra_completes_nothing() -> None:
    file = coadd(cameras(1), fibermap(1), TILEID=80613, SPGRP="cumulative")
    assert not desi.completes(file, redrock([5, 6]), ReadOptions())
    assert not desi.completes(file, redrock([BIG], TILEID=80614), ReadOptions())
    assert desi.completes(file, redrock([BIG], TILEID=80613), ReadOptions())
    assert not desi.completes(file, file, ReadOptions())
    for content in (b"TARGETID,Z\n1,2\n", b"SIMPLE  = broken", redrock([BIG]).content[:4000]):
        assert not desi.completes(file, Source("other", content), ReadOptions())


def test_redrock_files_that_disagree_fail_their_targets_only() -> None:
    file = coadd(cameras(2), fibermap(2))
    items = read(file, [redrock([BIG, BIG + 1]), redrock([BIG])])
    assert [isinstance(item, Observation) for item in items] == [True, True]
    items = read(file, [redrock([BIG, BIG + 1]), redrock([BIG + 1])])
    assert isinstance(items[0], Observation)
    assert isinstance(items[1], AlbireoError)
    assert items[1].code == "statement_conflict"


def test_redrock_alone_lacks_its_companion() -> None:
    table = redrock([1])
    names = [name for name, _, sniff, *_ in spectra.FORMATS if sniff(table)]
    assert names == ["desi_redrock"]
    with pytest.raises(BadInput) as caught:
        desi.refuse_redrock(table, ReadOptions(), ())
    assert caught.value.code == "companion_missing"


def test_recognition() -> None:
    assert [name for name, _, sniff, *_ in spectra.FORMATS if sniff(coadd(cameras(1), fibermap(1)))] == ["desi"]
    image = save(fits.PrimaryHDU(np.zeros((3, 96, 96))))
    assert not desi.sniff_desi(image)
    assert not desi.sniff_redrock(image)
    assert not desi.sniff_desi(Source("x", b"FIBERMAP B_WAVELENGTH B_FLUX"))


def test_simulated_files_come_back(tmp_path: Path) -> None:
    objects = [one for one in simulate(40, np.random.default_rng(5)) if desi.KEY in one.data][:3]
    named = [Observation(str(BIG + i), one.data, one.ra, one.dec, {}, one.metadata) for i, one in enumerate(objects)]
    write_desi(named, tmp_path / "coadd.fits")
    write_redrock(named[::-1], tmp_path / "redrock.fits")
    file, table = (Source.from_path(tmp_path / name) for name in ("coadd.fits", "redrock.fits"))
    assert desi.completes(file, table, ReadOptions())
    for one, item in zip(named, read(file, [table]), strict=True):
        spectrum, truth = spectrum_of(item), one.data[desi.KEY]
        assert isinstance(truth, Spectrum)
        assert isinstance(item, Observation)
        assert (item.id, item.ra, item.dec) == (one.id, one.ra, one.dec)
        assert np.array_equal(spectrum.wavelength, truth.wavelength)
        assert np.array_equal(spectrum.mask, truth.mask | (truth.ivar <= 0))
        good = ~spectrum.mask
        assert np.allclose(spectrum.flux[good], truth.flux[good], rtol=1e-4, atol=1e-5)
        assert item.metadata["redshift"] == one.metadata["redshift"]


# Real files


@pytest.mark.real
def test_real_coadds(test_data: Path) -> None:
    with (test_data / "eval/desi_spectra.csv").open() as lines:
        labels = {row["targetid"]: row for row in csv.DictReader(lines)}
    found = {}
    for name in ("coadd-4-80613-thru20210324.fits", "coadd-sv3-dark-26065.fits"):
        file = Source.from_path(test_data / "raw/desi" / name)
        items = read(file)
        found[name] = [item.id if isinstance(item, Observation) else item.code for item in items]
        with fits.open(test_data / "raw/desi" / name) as hdus:
            pixels = {
                camera: {w: hdus[f"{camera}_{w}"].data for w in ("WAVELENGTH", "FLUX", "IVAR", "MASK")}
                for camera in "BRZ"
            }
        for row, item in enumerate(items):
            if not isinstance(item, Observation):
                continue
            spectrum = spectrum_of(item)
            assert np.allclose(spectrum.wavelength, 3600 + 0.8 * np.arange(7781), rtol=0, atol=1e-6)
            _, flux, ivar = slow_mean(pixels, row)
            assert np.allclose(spectrum.flux, flux, rtol=1e-5, atol=1e-6)
            assert np.allclose(spectrum.ivar, ivar, rtol=1e-5)
            label = labels[item.id]
            assert (item.ra, item.dec) == (pytest.approx(float(label["ra"])), pytest.approx(float(label["dec"])))
            for short in ("g", "r", "z", "w1", "w2"):
                scalar = item.data[f"tok_flux_{short}"]
                assert isinstance(scalar, Scalar)
                assert scalar.value == pytest.approx(float(label[f"flux_{short}"]), rel=1e-6)
    assert found == {
        "coadd-4-80613-thru20210324.fits": ["39633345008634465"],
        "coadd-sv3-dark-26065.fits": [
            "not_a_target",
            "not_a_target",
            "39627866878511337",
            "not_a_target",
            "39627866878514741",
        ],
    }


@pytest.mark.real
def test_real_redrock(test_data: Path) -> None:
    folder = test_data / "raw/desi"
    file, other = (Source.from_path(folder / f"coadd-{n}.fits") for n in ("4-80613-thru20210324", "sv3-dark-26065"))
    table = Source.from_path(folder / "redrock-4-80613-thru20210324.fits")
    assert desi.completes(file, table, ReadOptions())
    assert not desi.completes(other, table, ReadOptions())
    (item,) = read(file, [table])
    assert isinstance(item, Observation)
    assert item.metadata["redshift"] == pytest.approx(0.36874355163716493, abs=1e-12)
    assert (item.metadata["class"], item.metadata["zwarning"]) == ("GALAXY", 0)
