"""Simulated observations in survey layouts: what independent readers find there is what was written."""

from __future__ import annotations

import gzip
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from specutils import Spectrum as SpecutilsSpectrum

from albireo.observations.errors import BadInput
from albireo.observations.images import read_fits_image
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.sky import simulate
from albireo.observations.sky_files import (
    CAMERAS,
    sample_objects,
    write_cutout,
    write_desi,
    write_photometry,
    write_redrock,
    write_samples,
    write_sdss,
)
from albireo.observations.source import Source

SAMPLES = Path(__file__).parents[2] / "observations" / "samples"

SEED = 10
"""Of a sky that has sixteen objects fit for samples among its first 108."""


@pytest.fixture(scope="module")
def objects() -> list[Observation]:
    return [replace(one, id=str(10**16 + k)) for k, one in enumerate(simulate(30, np.random.default_rng(8)))]


def spectrum(one: Observation, key: str) -> Spectrum:
    payload = one.data[key]
    assert isinstance(payload, Spectrum)
    return payload


@pytest.mark.parametrize("key", ["tok_image", "tok_image_hsc"])
def test_a_cutout_is_read_back(objects: list[Observation], key: str, tmp_path: Path) -> None:
    one = next(one for one in objects if key in one.data)
    write_cutout(one, tmp_path / "cutout.fits.gz", key)
    (item,) = read_fits_image(Source.from_path(tmp_path / "cutout.fits.gz"), ReadOptions(), [])
    assert isinstance(item, Observation)
    written, read = one.data[key], item.data[key]
    assert isinstance(written, Image)
    assert isinstance(read, Image)
    assert item.id == one.id
    assert item.flags == ()
    assert np.array_equal(read.flux, written.flux)
    assert (read.bands, read.unit, read.zero_point) == (written.bands, written.unit, written.zero_point)
    assert read.pixel_scale == pytest.approx(written.pixel_scale, rel=1e-6)
    assert (item.ra, item.dec) == (pytest.approx(one.ra, abs=1e-6), pytest.approx(one.dec, abs=1e-6))


def test_bad_pixels_of_a_cutout_and_its_ivar_survive(objects: list[Observation], tmp_path: Path) -> None:
    image = objects[0].data["tok_image"]
    assert isinstance(image, Image)
    mask = np.zeros(image.flux.shape, bool)
    mask[1, 10:12, 20] = True
    ivar = np.full(image.flux.shape, 1e5, np.float32)
    one = replace(objects[0], data={"tok_image": replace(image, mask=mask, ivar=ivar)})
    write_cutout(one, tmp_path / "cutout.fits")
    (item,) = read_fits_image(Source.from_path(tmp_path / "cutout.fits"), ReadOptions(), [])
    assert isinstance(item, Observation)
    read = item.data["tok_image"]
    assert isinstance(read, Image)
    assert np.array_equal(read.mask, mask)
    assert read.ivar is not None
    assert np.array_equal(read.ivar[~mask], ivar[~mask])


def test_east_is_left_and_the_object_at_the_centre(objects: list[Observation], tmp_path: Path) -> None:
    write_cutout(objects[0], tmp_path / "cutout.fits")
    with fits.open(tmp_path / "cutout.fits") as hdus:
        wcs = WCS(hdus[0].header, naxis=2)
    centre, east = wcs.pixel_to_world(47.5, 47.5), wcs.pixel_to_world(0, 47.5)
    assert (centre.ra.deg, centre.dec.deg) == (pytest.approx(objects[0].ra), pytest.approx(objects[0].dec))
    assert centre.directional_offset_by(90 * centre.ra.unit, 47.5 * 0.262 / 3600 * centre.ra.unit).separation(
        east
    ).arcsec == pytest.approx(0, abs=1e-3)


def test_specutils_reads_the_sdss_file(objects: list[Observation], tmp_path: Path) -> None:
    one = next(one for one in objects if "tok_spectrum_sdss" in one.data)
    true = spectrum(one, "tok_spectrum_sdss")
    path = tmp_path / f"spec-{one.id}.fits"
    write_sdss(one, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = SpecutilsSpectrum.read(path, format="SDSS-III/IV spec")
    assert np.array_equal(read.flux.value.astype(np.float32), true.flux)
    assert np.allclose(read.spectral_axis.to_value("Angstrom"), true.wavelength, rtol=6e-7)  # loglam is float32
    assert np.allclose(read.uncertainty.array, true.ivar)
    assert np.array_equal(np.asarray(read.mask) != 0, true.mask)
    with fits.open(path) as hdus:
        row = hdus[2].data[0]
        assert str(row["SPECOBJID"]).strip() == one.id
        assert (row["CLASS"], row["Z"]) == (one.metadata["class"], pytest.approx(one.metadata["redshift"]))
        assert hdus[0].header["VACUUM"] is True


def test_the_mean_of_the_desi_cameras_is_the_spectrum(objects: list[Observation], tmp_path: Path) -> None:
    targets = [one for one in objects if "tok_spectrum_desi" in one.data][:4]
    write_desi(targets, tmp_path / "coadd.fits")
    write_redrock(targets, tmp_path / "redrock.fits")
    truth = [spectrum(one, "tok_spectrum_desi") for one in targets]
    grid = truth[0].wavelength
    weight, sums, seen = (np.zeros((4, len(grid))) for _ in range(3))
    with fits.open(tmp_path / "coadd.fits") as hdus:
        assert [str(k) for k in hdus["FIBERMAP"].data["TARGETID"]] == [one.id for one in targets]
        differ = False
        for camera, pixels in CAMERAS.items():
            assert np.array_equal(hdus[f"{camera}_WAVELENGTH"].data, grid[pixels])
            ivar = hdus[f"{camera}_IVAR"].data.astype(float)
            sums[:, pixels] += ivar * hdus[f"{camera}_FLUX"].data
            weight[:, pixels] += ivar
            seen[:, pixels] += 1
            bad = hdus[f"{camera}_MASK"].data != 0
            assert np.array_equal(bad, np.stack([one.mask[pixels] for one in truth]))
            flux = np.stack([one.flux[pixels] for one in truth])
            differ |= not np.array_equal(hdus[f"{camera}_FLUX"].data, flux)
    assert differ  # one camera alone is not the coadd where they overlap
    assert [int(n) for n in np.bincount(seen[0].astype(int))] == [0, 7781 - 51 - 126, 51 + 126]
    for k, one in enumerate(truth):
        good = ~one.mask
        assert np.allclose(weight[k], one.ivar, rtol=1e-6)
        assert np.allclose((sums[k][good] / weight[k][good]), one.flux[good], rtol=1e-5, atol=1e-6)
    with fits.open(tmp_path / "redrock.fits") as hdus:
        table = hdus["REDSHIFTS"].data
        assert [str(k) for k in table["TARGETID"]] == [one.id for one in targets]
        assert list(table["Z"]) == [one.metadata["redshift"] for one in targets]
        assert [s.strip() for s in table["SPECTYPE"]] == [one.metadata["class"] for one in targets]


@pytest.mark.parametrize("suffix", ["ecsv", "csv"])
def test_the_photometry_table(objects: list[Observation], suffix: str, tmp_path: Path) -> None:
    write_photometry(objects, tmp_path / f"table.{suffix}")
    table = Table.read(tmp_path / f"table.{suffix}", format=f"ascii.{suffix}")
    assert [str(k) for k in table["id"]] == [one.id for one in objects]
    assert list(table["class"]) == [one.metadata["class"] for one in objects]
    assert list(table["redshift"]) == [one.metadata["redshift"] for one in objects]
    assert not {"z", "Z"} & set(table.colnames)
    for name, key in (
        ("FLUX_R", "tok_flux_r"),
        ("EBV", "tok_ebv"),
        ("parallax", "tok_parallax"),
        ("g_cmodel_mag", "tok_mag_g"),
    ):
        for one, value in zip(objects, np.ma.asarray(table[name]), strict=True):
            payload = one.data.get(key)
            assert (payload is None) == (value is np.ma.masked)
            assert payload is None or (isinstance(payload, Scalar) and payload.value == value)
    flux = objects[0].data["tok_flux_r"]
    assert isinstance(flux, Scalar)
    assert flux.error is not None
    assert table["FLUX_IVAR_R"][0] == pytest.approx(flux.error**-2)
    if suffix == "ecsv":
        assert str(table["FLUX_R"].unit) == "nmgy"
        assert table.meta["survey"] == "legacysurvey"


def test_what_an_object_lacks_is_an_error(objects: list[Observation], tmp_path: Path) -> None:
    bare = replace(objects[0], data={"tok_ebv": objects[0].data["tok_ebv"]})
    for write in (write_cutout, write_sdss):
        with pytest.raises(BadInput) as caught:
            write(bare, tmp_path / "a.fits")
        assert caught.value.code == "value_missing"
    with pytest.raises(BadInput) as caught:
        write_cutout(replace(objects[0], ra=None), tmp_path / "a.fits")
    assert caught.value.code == "value_missing"
    one = next(one for one in objects if "tok_spectrum_desi" in one.data)
    for name in ("sim-000001", "007", str(2**63), "-5"):
        with pytest.raises(BadInput) as caught:
            write_desi([replace(one, id=name)], tmp_path / "a.fits")
        assert (caught.value.code, caught.value.field) == ("value_out_of_range", "TARGETID")
    short = spectrum(one, "tok_spectrum_desi")
    short = replace(
        short, wavelength=short.wavelength[1:], flux=short.flux[1:], ivar=short.ivar[1:], mask=short.mask[1:]
    )
    with pytest.raises(BadInput) as caught:
        write_desi([replace(one, data={"tok_spectrum_desi": short})], tmp_path / "a.fits")
    assert caught.value.code == "shape_mismatch"
    with pytest.raises(BadInput):
        write_photometry(objects, tmp_path / "table.fits")
    assert not list(tmp_path.iterdir())


def test_samples_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_samples(tmp_path / name, SEED)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_bundled_samples_are_small_and_share_ids() -> None:
    paths = sorted(SAMPLES.iterdir())
    assert sum(path.stat().st_size for path in paths) < 2.5e6
    table = Table.read(SAMPLES / "photometry.ecsv")
    ids = [str(k) for k in table["id"]]
    assert len(set(ids)) == 16
    assert {"GALAXY", "STAR", "QSO"} == set(table["class"])
    cutouts, spectra = (
        {p.name.split("-")[1].split(".")[0] for p in SAMPLES.glob(f"{k}-*.gz")} for k in ("cutout", "spec")
    )
    assert (len(cutouts), len(spectra)) == (8, 6)
    with fits.open(SAMPLES / "coadd-simulated.fits.gz") as hdus:
        targets = {str(k) for k in hdus["FIBERMAP"].data["TARGETID"]}
    assert len(targets) == 6
    assert cutouts | spectra | targets <= set(ids)
    assert cutouts & spectra
    assert cutouts & targets
    for path in SAMPLES.glob("*.gz"):
        assert gzip.decompress(path.read_bytes())[:6] == b"SIMPLE"


def test_sample_objects_are_bright_and_have_both_spectra() -> None:
    for one in sample_objects(SEED):
        assert {"tok_spectrum_desi", "tok_spectrum_sdss", "tok_image"} <= one.data.keys()
        assert int(one.id) > 2**53
