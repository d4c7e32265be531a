"""What `albireo validate --json` says of five real files of different kinds, beside independent readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

pytestmark = pytest.mark.real


def validated(*paths: Path) -> list[dict[str, Any]]:
    """The items of the answer, from the command itself in a process of its own."""
    code = "import sys; from albireo.service.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "validate", "--json", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return items


def modality(item: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in item["detected"]["modalities"] if entry["modality"] == name)


def test_sdss_spectrum_beside_specutils(test_data: Path) -> None:
    from specutils import Spectrum

    path = test_data / "raw" / "sdss" / "spec-0266-51630-0168.fits"
    (item,) = validated(path)
    ours, theirs = modality(item, "spectrum.sdss"), Spectrum.read(path, format="SDSS-III/IV spec")
    good = ~theirs.mask & (theirs.uncertainty.array > 1e-6)
    assert ours["pixels_used"] == good.sum()
    assert ours["pixels_used"] + ours["pixels_masked"] == len(theirs.flux)
    assert ours["median_flux"] == pytest.approx(np.median(theirs.flux.value[good]), rel=1e-6)
    wavelength = theirs.spectral_axis.to_value("Angstrom")
    assert ours["wavelength_range"] == pytest.approx([wavelength[0], wavelength[-1]], abs=1e-3)
    assert (ours["medium"], ours["frame"]) == ("vacuum", "heliocentric")


def test_desi_coadd_by_hand(test_data: Path) -> None:
    folder = test_data / "raw" / "desi"
    (item,) = validated(folder / "coadd-4-80613-thru20210324.fits", folder / "redrock-4-80613-thru20210324.fits")
    ours = modality(item, "spectrum.desi")
    with fits.open(folder / "coadd-4-80613-thru20210324.fits") as hdus:
        total, weight = np.zeros(7781), np.zeros(7781)
        for camera in "BRZ":
            at = np.rint((hdus[f"{camera}_WAVELENGTH"].data - 3600) / 0.8).astype(int)
            ivar = np.where(hdus[f"{camera}_MASK"].data[0] == 0, hdus[f"{camera}_IVAR"].data[0], 0).astype(float)
            total[at] += ivar * hdus[f"{camera}_FLUX"].data[0]
            weight[at] += ivar
        identity = int(hdus["FIBERMAP"].data["TARGETID"][0])
        flux_r = float(hdus["FIBERMAP"].data["FLUX_R"][0])
    with fits.open(folder / "redrock-4-80613-thru20210324.fits") as hdus:
        z = float(hdus["REDSHIFTS"].data["Z"][0])
    good = weight > 0
    assert (ours["pixels_used"], ours["pixels_masked"]) == (good.sum(), 7781 - good.sum())
    assert ours["median_flux"] == pytest.approx(np.median(total[good] / weight[good]), rel=1e-5)
    assert ours["wavelength_range"] == pytest.approx([3600.0, 9824.0], abs=1e-3)
    assert (item["id"], item["metadata"]["redshift"]) == (str(identity), pytest.approx(z))
    assert modality(item, "legacysurvey.flux_r")["value"] == pytest.approx(flux_r, rel=1e-6)


def test_image_by_hand(test_data: Path) -> None:
    path = test_data / "raw" / "images" / "decals_grz_a.fits"
    (item,) = validated(path)
    ours = modality(item, "image.legacysurvey")
    with fits.open(path) as hdus:
        cut = hdus[0].data[:, 206:302, 206:302]
    assert ours["bands"] == ["DES-G", "DES-R", "DES-Z"]
    assert ours["kept_fraction"] == pytest.approx((96 / 509) ** 2)
    assert ours["median_flux"] == pytest.approx(float(np.median(cut)), rel=1e-6)
    for band, plane in zip(ours["bands"], cut, strict=True):
        assert ours["median_flux_by_band"][band] == pytest.approx(float(np.median(plane)), rel=1e-6)


def test_light_curves_beside_sncosmo(test_data: Path) -> None:
    import sncosmo

    head = test_data / "raw" / "snana" / "DES-SN5YR_Foundation_HEAD.FITS.gz"
    phot = test_data / "raw" / "snana" / "DES-SN5YR_Foundation_PHOT.FITS.gz"
    items, theirs = validated(head, phot), sncosmo.read_snana_fits(str(head), str(phot))
    assert len(items) == len(theirs) == 185
    for item, table in zip(items, theirs, strict=True):
        ours = modality(item, "lightcurve")
        assert item["id"] == table.meta["SNID"].decode().strip()
        assert ours["epochs"] == len(table)
        assert ours["median_flux"] == pytest.approx(np.median(table["FLUXCAL"]), rel=1e-5)
        assert ours["time_range"] == pytest.approx([table["MJD"].min(), table["MJD"].max()], abs=1e-6)


def test_gaia_coefficients_by_hand(test_data: Path) -> None:
    path = test_data / "raw" / "gaia" / "XP_CONTINUOUS_RAW.fits"
    items = validated(path)
    with fits.open(path) as hdus:
        rows = hdus[1].data
        assert [item["id"] for item in items] == [str(int(source)) for source in rows["source_id"]]
        for item, row in zip(items, rows, strict=True):
            for name, column in (("gaia.xp_bp", "bp_coefficients"), ("gaia.xp_rp", "rp_coefficients")):
                assert modality(item, name)["n_coefficients"] == len(row[column]) == 55
                assert modality(item, name)["first"] == pytest.approx(row[column][0], rel=1e-6)
