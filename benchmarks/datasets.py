"""Labelled real data for evaluation: every set as observations, labels and groups, by the conventions of its source.

    DATASETS   name -> the function that reads it from the folder of the data
    SIMULATED  name -> which simulated objects, and how many
    read       a set of either by its name

Here are the photometric sets of galaxies; spectra and stars are in spectra_sets and star_sets. What a set's numbers are
not in the terms of a checkpoint is named in its note: corrected fluxes stand in for raw ones of an object behind no
dust, E(B-V) = 0; Suprime-Cam and MegaCam magnitudes for HSC's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from albireo.models.cpu import available_cores
from albireo.observations.observation import Convention, Observation, Payload, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.photometry import in_unit_of
from albireo.observations.shards import read_shard
from albireo.observations.simulation.production import Order, produce
from albireo.observations.simulation.survey import Kind
from albireo.observations.source import Source
from albireo.observations.tables import read_table
from benchmarks.labelled import Dataset
from benchmarks.spectra_sets import all_surveys, desi, lamost, miles, sdss_boss
from benchmarks.star_sets import test_stars, training_stars

EBV_PER_EXTINCTION_R = 1.0 / 2.751
"""E(B-V) of Schlegel, Finkbeiner and Davis (1998) over the extinction in r that SDSS tabulates from it."""

SECURE_ZCOSMOS = (3, 4)
"""Classes of confidence of zCOSMOS: very secure redshifts, 99 % and more. Lilly et al. (2009), ApJS 184, 218."""

SECURE_VVDS = (3, 4)
"""Flags of VVDS: 95 % sure and more; 23 and 24 are objects that fell into another's slit. Le Fevre et al. (2005)."""

STARS_END = 0.002
"""Redshift up to which an object of a deep survey is a star."""


def kcorrect(folder: Path) -> Dataset:
    """10,000 SDSS galaxies of the Main and luminous-red samples: u g r i z J H K and redshift, as the tables say."""
    source = Source.from_path(folder / "eval" / "photoz_kcorrect_gst.fits")
    items = read_table(source, ReadOptions(survey="sdss", columns={"redshift": "Z"}), [])
    found = []
    for item in items:
        assert isinstance(item, Observation), item
        extinction = item.extras["sdss.extinction_r"].value
        ebv = {"tok_ebv": Scalar(extinction * EBV_PER_EXTINCTION_R, "mag")}
        found.append(replace(item, data={**item.data, **ebv}))
    labels = {"redshift": np.array([one.metadata["redshift"] for one in found])}
    note = "model fluxes, raw; E(B-V) from the extinction beside them; 2MASS extended-source magnitudes as fluxes"
    return Dataset("photoz_kcorrect_gst", tuple(found), labels, tuple(one.id for one in found), False, note)


def mgs(folder: Path) -> Dataset:
    """5,000 galaxies, the training half of a community benchmark of MLZ: ugriz corrected for dust, and redshift.

    `z` is the band and `zspec` the redshift. MLZ says of the file: model magnitudes, corrected by extinction.
    """
    table = pq.read_table(folder / "eval" / "photoz_sdss_mgs.parquet").to_pydict()
    columns = {f"flux_{b}_sdss": (table[b], table[f"e{b}"], f"SDSS-{b}", "asinh mag") for b in "ugriz"}
    rows = _behind_no_dust("mgs", columns, "sdss", "model")
    labels = {"redshift": np.array(table["zspec"])}
    note = "corrected asinh magnitudes, taken as fluxes of galaxies behind no dust; overlaps photoz_kcorrect_gst in sky"
    return Dataset("photoz_sdss_mgs", rows, labels, tuple(one.id for one in rows), False, note)


def zcosmos(folder: Path) -> Dataset:
    """Galaxies of zCOSMOS-bright with very secure redshifts: u to K, aperture magnitudes of Subaru, CFHT and UKIRT."""
    table = pq.read_table(folder / "eval" / "photoz_zcosmos_bright.parquet").to_pydict()
    cc, z = np.array(table["cc"]), np.array(table["zpec"])
    good = np.isin(cc.astype(int), SECURE_ZCOSMOS) & (z > STARS_END)
    bands = {
        b: (table[f"{b}_photzi25"], table[f"e{b}_photzi25"]) for b in ("u", "b", "v", "g", "r", "i", "z", "j", "k")
    }
    rows = _deep("zcosmos", [str(one) for one in table["id_zcosmos"]], bands, good)
    note = "confidence classes 3 and 4 without stars; aperture magnitudes; Subaru g r i z stand in for HSC's"
    return Dataset("photoz_zcosmos", rows, {"redshift": z[good]}, tuple(one.id for one in rows), False, note)


def vvds(folder: Path) -> Dataset:
    """Galaxies of VVDS-Deep with secure redshifts: B V R I of CFH12K, u g r i z of the CFHT Legacy Survey."""
    table = pq.read_table(folder / "eval" / "photoz_vvds_deep.parquet").to_pydict()
    z, flags = np.array(table["ds_spectra.Z"]), np.array(table["ds_spectra.ZFLAGS"])
    good = np.isin(flags, SECURE_VVDS) & (z > STARS_END)
    bands = {b: (table[f"MAG_AUTO_{b.upper()}"], table[f"MAGERR_AUTO_{b.upper()}"]) for b in "ugriz"}
    old = {b: (table[f"ds_cfh12k.MAG_AUTO_{b}"], table[f"ds_cfh12k.MAGERR_AUTO_{b}"]) for b in "BVRI"}
    rows = _deep("vvds", [str(one) for one in table["ds_spectra.NUM"]], bands | old, good)
    note = "flags 3 and 4 without stars; total magnitudes; MegaCam g r i z stand in for HSC's"
    return Dataset("photoz_vvds", rows, {"redshift": z[good]}, tuple(one.id for one in rows), False, note)


def candels(folder: Path) -> Dataset:
    """1,143 galaxies of CANDELS GOODS-S with spectroscopic redshifts, U to 8 micron in uJy: no checkpoint's bands."""
    table = pq.read_table(folder / "eval" / "photoz_candels_goodss.parquet").to_pydict()
    z = np.array(table["Z"], np.float64)
    rows = []
    for k in range(len(z)):
        extras = {}
        for name in (name for name in table if name != "Z" and not name.endswith("_ERR")):
            value, error = table[name][k], table[f"{name}_ERR"][k]
            if value > -90.0:
                extras[f"candels.{name}"] = Scalar(value, "uJy", error if error > 0 else None)
        rows.append(Observation(f"candels-{k}", {}, extras=extras))
    note = "total fluxes of Hubble, VLT and Spitzer; no row of the modalities describes them, so only rivals read them"
    return Dataset("photoz_candels", tuple(rows), {"redshift": z}, tuple(one.id for one in rows), False, note)


def piczl(folder: Path) -> Dataset:
    """26 hosts of active nuclei in Legacy Survey DR10 with redshift: fluxes g r i z W1 W2. Their pictures are 23 pixels
    wide, too small for a cutout of 96."""
    table = np.load(folder / "eval" / "piczl_ls10_griz.npz")
    names = {"g": "g", "r": "r", "i": "i", "z": "dered_flux_z", "w1": "w1", "w2": "w2"}
    bands = {b: f"DES-{b.upper()}" if len(b) == 1 else b.upper() for b in names}
    columns: dict[str, Any] = {
        f"tok_flux_{b}": (table[name].tolist(), None, bands[b], "nanomaggy") for b, name in names.items()
    }
    rows = _behind_no_dust("piczl", columns, "legacysurvey", "model")
    note = (
        "fluxes corrected for dust (z by name, the others as their ratios to the images tell), as of no dust; test only"
    )
    # Rows of one field repeat a redshift: neighbours of one target, in one group.
    z = np.array(table["z"], np.float64)
    return Dataset("piczl", rows, {"redshift": z}, tuple(f"{one:.5f}" for one in z), True, note)


def _behind_no_dust(name: str, columns: Mapping[str, Any], survey: str, kind: Any) -> tuple[Observation, ...]:
    """Objects of corrected photometry: token key -> (values, errors or None, band, unit), with E(B-V) = 0 beside."""
    scalars: dict[str, list[Payload | None]] = {}
    for key, (values, errors, band, unit) in columns.items():
        convention = Convention(survey, band, "AB", kind, extinction_corrected=True)
        flux, sigma = np.array(values, np.float64), None if errors is None else np.array(errors, np.float64)
        if unit != "nanomaggy":
            numbers = in_unit_of(key, flux, sigma, unit, convention)
            assert numbers is not None, key
            flux, sigma = numbers
        scalars[key] = [
            Scalar(float(flux[k]), "nanomaggy", None if sigma is None else float(sigma[k]), convention)
            if np.isfinite(flux[k])
            else None
            for k in range(len(flux))
        ]
    dust = Scalar(0.0, "mag")
    count = len(next(iter(scalars.values())))
    return tuple(
        Observation(
            f"{name}-{k}",
            {key: one for key, column in scalars.items() if (one := column[k]) is not None} | {"tok_ebv": dust},
        )
        for k in range(count)
    )


def _deep(name: str, ids: list[str], bands: Mapping[str, Any], good: NDArray[np.bool_]) -> tuple[Observation, ...]:
    """Objects of a deep survey: g r i z as HSC's magnitudes, the rest among the extras; -99 and 99 are no magnitude."""
    rows = []
    for k in np.flatnonzero(good):
        data: dict[str, Payload] = {}
        extras: dict[str, Scalar] = {}
        for band, (values, errors) in bands.items():
            value, error = values[k], errors[k]
            if value is None or not 0.0 < value < 90.0:
                continue
            scalar = Scalar(value, "mag", error if error is not None and 0.0 < error < 90.0 else None)
            if band in ("g", "r", "i", "z"):
                data[f"tok_mag_{band}"] = scalar
            else:
                extras[f"{name}.{band}"] = scalar
        rows.append(Observation(f"{name}-{ids[k]}", data, extras=extras))
    return tuple(rows)


SIMULATED_SEED = 900_001
"""A sky that nothing is trained on."""


def simulated(folder: Path, kind: Kind, n: int) -> Dataset:
    """Objects of the simulated sky, with what was drawn of them as labels; made in `folder` unless they are there."""
    order = Order(n, kind, SIMULATED_SEED)
    place = folder / f"{kind}-{n}-seed{order.seed}-recipe{order.recipe}"
    if not (place / "manifest.json").exists():
        produce(place, order, available_cores())
    rows: list[Observation] = []
    for name, _ in order.shards():
        for item in read_shard(Source.from_path(place / name), ReadOptions(), []):
            assert isinstance(item, Observation), item
            rows.append(item)
    names = {name for one in rows for name in one.metadata}
    labels: dict[str, NDArray[Any]] = {}
    for name in sorted(names):
        cells = [one.metadata.get(name) for one in rows]
        texts = any(isinstance(cell, str) for cell in cells)
        labels[name] = np.array([("" if texts else np.nan) if cell is None else cell for cell in cells])
    sky = f"simulated sky of seed {order.seed}, recipe {order.recipe}: {kind}"
    note = f"{sky}; every object has the modalities that a survey gave it"
    return Dataset(f"simulated_{kind}", tuple(rows), labels, tuple(one.id for one in rows), False, note)


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "photoz_kcorrect_gst": kcorrect,
    "photoz_sdss_mgs": mgs,
    "photoz_zcosmos": zcosmos,
    "photoz_vvds": vvds,
    "photoz_candels": candels,
    "piczl": piczl,
    "gaia_xp_apogee": test_stars,
    "gaia_xp_wheel": training_stars,
    "sdss_boss_spectra": sdss_boss,
    "desi_spectra": desi,
    "lamost_spectra": lamost,
    "real_spectra": all_surveys,
    "miles_stars": miles,
}
"""Name -> reader of the folder of real data; `gaia_xp_wheel` needs what `python -m benchmarks.star_sets` downloads."""

SIMULATED: dict[str, tuple[Kind, int]] = {"simulated_mix": ("mix", 3000), "simulated_galaxies": ("galaxies", 1500)}
"""Name -> kind of simulated objects, and how many."""


def read(name: str, real: Path, made: Path) -> Dataset:
    """A set by its name: from the folder of real data, or simulated and kept in the folder `made`."""
    return simulated(made, *SIMULATED[name]) if name in SIMULATED else DATASETS[name](real)
