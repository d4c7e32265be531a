"""Pictures of the spectra that a head was wrong about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from albireo.observations.observation import Spectrum
from benchmarks.labelled import Dataset

MOST = 40
"""Panels of a picture; all failures are listed in the page's table."""

LINES = {
    "Ly a": 1215.67, "C IV": 1549.5, "C III]": 1908.7, "Mg II": 2799.1, "[O II]": 3728.5, "K": 3934.8, "H b": 4862.7,
    "[O III]": 5008.2, "H a": 6564.6,
}  # fmt: skip
"""Vacuum wavelengths in Angstrom, drawn at the redshift of the label."""


def draw(test: Dataset, failed: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The spectrum of every failed object with its label, what was said, and lines at the label's redshift.

    failed  {"id", "label", "said"} of each, and "redshift" if its lines are to be drawn
    """
    by_id = {one.id: one for one in test.observations}
    shown = failed[:MOST]
    rows = (len(shown) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11.0, 1.7 * rows), squeeze=False)
    for axis in axes.ravel()[len(shown) :]:
        axis.axis("off")
    for axis, one in zip(axes.ravel(), shown, strict=False):
        spectrum = next((p for p in by_id[one["id"]].data.values() if isinstance(p, Spectrum)), None)
        if spectrum is None:
            axis.axis("off")
            continue
        good = ~spectrum.mask
        x, flux = spectrum.wavelength[good], spectrum.flux[good]
        n = len(x) // 5 * 5
        x, flux = x[:n].reshape(-1, 5).mean(axis=1), flux[:n].reshape(-1, 5).mean(axis=1)
        axis.plot(x, flux, lw=0.5, color="0.2")
        low, high = np.percentile(flux, [0.5, 99.5])
        axis.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
        if (z := one.get("redshift")) is not None:
            for k, (name, rest) in enumerate(LINES.items()):
                if x[0] < rest * (1 + z) < x[-1]:
                    axis.axvline(rest * (1 + z), color="tab:blue", lw=0.6, alpha=0.6)
                    # Names of neighbouring lines stand one above the other.
                    height = high + (0.14 if k % 2 else 0.02) * (high - low)
                    axis.text(rest * (1 + z), height, name, fontsize=5, color="tab:blue")
        axis.set_title(f"{one['id']}: label {one['label']}, said {one['said']}", fontsize=6)
        axis.tick_params(labelsize=5)
    figure.supxlabel("vacuum wavelength (Angstrom), means of 5 pixels", fontsize=7)
    figure.supylabel("flux (1e-17 erg / (s cm2 Angstrom))", fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
