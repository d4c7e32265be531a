"""Rivals: what they read, that they learn, that labels are not read, and that the better one is taken."""

from __future__ import annotations

import numpy as np
import pytest

from albireo.models import rivals
from albireo.observations.observation import Coefficients, Image, Observation, Scalar, Spectrum


def objects() -> list[Observation]:
    both = {"flux_g_sdss": Scalar(10.0, "nanomaggy"), "flux_r_sdss": Scalar(100.0, "nanomaggy")}
    return [
        Observation("a", {**both, "tok_ebv": Scalar(0.1, "mag"), "tok_z": Scalar(0.7, "")}),
        Observation("b", {"flux_g_sdss": both["flux_g_sdss"]}, extras={"zcosmos.u": Scalar(24.0, "mag")}),
    ]


def test_features_of_photometry() -> None:
    x, names = rivals.features(objects())
    got = dict(zip(names, x.T, strict=True))
    assert "tok_z" not in names
    assert got["mag flux_g_sdss - mag flux_r_sdss"][0] == pytest.approx(2.5, abs=1e-3)
    assert np.isnan(got["mag flux_r_sdss"][1])
    assert np.isnan(got["mag flux_g_sdss - mag flux_r_sdss"][1])
    assert got["tok_ebv"][0] == 0.1
    assert got["mag zcosmos.u"][1] == 24.0
    assert not any("zcosmos" in name and " - " in name for name in names), "no colour between two surveys"


def test_features_of_arrays() -> None:
    wavelength = np.arange(4000.0, 9000.0, 1.0)
    ones = np.ones(len(wavelength), np.float32)
    spectrum = Spectrum(wavelength, 3 * ones, ones, wavelength < 5000, "1e-17 erg / (s cm2 Angstrom)", "heliocentric")
    image = Image(np.ones((2, 96, 96), np.float32), ("DES-G", "DES-R"), 0.262, "nanomaggy", 22.5,
                  np.zeros((2, 96, 96), bool), ())  # fmt: skip
    xp = Coefficients(np.arange(55, dtype=np.float32), "electron / s")
    data = {"tok_spectrum_sdss": spectrum, "tok_image": image, "tok_xp_bp": xp}
    x, names = rivals.features([Observation("a", data)])
    got = dict(zip(names, x[0], strict=True))
    flux = np.array([got[f"tok_spectrum_sdss {k}"] for k in range(500)])
    edges = rivals.SPECTRUM_GRID
    assert np.isnan(flux[edges[1:] < 5000]).all(), "masked"
    assert flux[(edges[:-1] > 5001) & (edges[1:] < 8998)] == pytest.approx(1.0)
    assert got["tok_spectrum_sdss log norm"] == pytest.approx(np.log10(3))
    assert np.linalg.norm([got[f"tok_xp_bp {k}"] for k in range(55)]) == pytest.approx(1.0)
    assert got["tok_image DES-R 8"] > got["tok_image DES-R 4"]


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs with missing values, and labels that depend on two of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] ** 2 + 0.05 * rng.normal(size=n)
    return np.where(rng.uniform(size=x.shape) < 0.03, np.nan, x), 100 + 30 * y


def test_the_best_learns_and_beats_the_trivial() -> None:
    (x, y), validation, (new, truth) = drawn(400, 1), drawn(150, 2), drawn(400, 3)
    rival = rivals.best("regression", x, y, validation, seed=5)
    got = rival.predict(new)
    middle = rivals.trivial("regression", y).predict(new)
    assert np.unique(middle).tolist() == [np.median(y)]
    assert np.mean(np.abs(got - truth)) < 0.4 * np.mean(np.abs(middle - truth))
    assert len(rival.off) == 150
    ratio = np.quantile(rival.off, 0.68) / np.quantile(np.abs(got - truth), 0.68)
    assert 0.85 < ratio < 1.6, "it is fitted again to more objects: intervals are rather too wide than too narrow"
    again = rivals.best("regression", x, y, validation, seed=5)
    assert again.name == rival.name
    assert (again.predict(new) == got).all()


def test_inputs_that_only_new_objects_have_are_left_out() -> None:
    """A library of stars ends at 7,400 A, the stars that it is asked about do not."""
    (x, y), (vx, vy), (new, _) = drawn(60, 1), drawn(20, 2), drawn(50, 3)

    def wider(table: np.ndarray, *values: float) -> np.ndarray:
        return np.column_stack([*[np.full(len(table), value) for value in values], table])

    plain = rivals.best("regression", x, y, (vx, vy))
    wide = rivals.best("regression", wider(x, np.nan, 2.0), y, (wider(vx, np.nan, 2.0), vy))
    assert (wide.predict(wider(new, 7.0, 9.0)) == plain.predict(new)).all()
    blind = rivals.best("regression", np.full((60, 2), np.nan), y, (np.full((20, 2), np.nan), vy))
    assert blind.name == "median"


def test_classes() -> None:
    (x, y), (vx, vy), (new, truth) = drawn(300, 1), drawn(150, 2), drawn(300, 3)
    name = lambda v: np.where(v > 130, "high", np.where(v > 105, "middle", "low"))  # noqa: E731
    rival = rivals.best("classification", x, name(y), (vx, name(vy)))
    p = rival.predict(new)
    assert rival.classes == ("high", "low", "middle")
    assert p.sum(axis=1) == pytest.approx(1.0)
    found = np.array(rival.classes)[p.argmax(axis=1)]
    assert (found == name(truth)).mean() > 0.75
    shares = rivals.trivial("classification", np.array(["b", "a", "b", "b"]))
    assert shares.classes == ("a", "b")
    assert shares.predict(new[:2]).tolist() == [[0.25, 0.75], [0.25, 0.75]]
    assert rivals.best("classification", x, np.full(len(x), "a"), (vx, np.full(len(vx), "a"))).name == "class shares"


def test_inputs_are_not_changed() -> None:
    (x, y), validation = drawn(60, 1), drawn(30, 2)
    before = x.copy(), y.copy()
    rivals.best("regression", x, y, validation)
    assert np.array_equal(x, before[0], equal_nan=True)
    assert (y == before[1]).all()
