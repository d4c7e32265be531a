"""The demo's picture: colours that survive the stretch, and a panel for whatever was observed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation
from albireo.service.picture import Panel, draw, rgb
from albireo.service.readiness import probe


def flat_image(ratio: tuple[float, float, float, float], level: float) -> Image:
    y, x = np.mgrid[:96, :96] - 47.5
    shape = np.exp(-(x**2 + y**2) / 200.0) * level
    flux = (np.array(ratio)[:, None, None] * shape).astype(np.float32)
    row = MODALITIES["tok_image"]
    return Image(flux, row.bands, 0.262, row.unit, 22.5, np.zeros(flux.shape, np.bool_), ())


def test_colours_do_not_depend_on_brightness() -> None:
    centre = [rgb(flat_image((1, 2, 3, 4), level))[48, 48] for level in (0.1, 10.0)]
    np.testing.assert_allclose(centre[0], centre[1], rtol=1e-3)
    assert centre[0][0] > centre[0][1] > centre[0][2]


def test_rgb_stays_in_range_and_leaves_its_input() -> None:
    image = flat_image((1, 1, 1, 1), 1.0)
    image.flux[:, 3, 3] = np.nan
    before = image.flux.copy()
    colours = rgb(image)
    assert colours.shape == (96, 96, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    np.testing.assert_array_equal(image.flux, before)


@pytest.mark.parametrize("keys", [("tok_image", "tok_spectrum_sdss"), ("tok_xp_bp", "tok_xp_rp"), ("tok_ebv",)])
def test_a_picture_of_any_modalities(tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = tmp_path / "deep" / "demo.png"
    full = probe(keys)
    panels = [Panel("query", full, None, "GALAXY, z = 0.1")]
    panels += [Panel(f"n{n}", full if n else Observation("empty", {}), 0.9, "no label") for n in range(5)]
    draw(panels, path, "title", "subtitle")
    assert imread(path).shape[1] > 1500
