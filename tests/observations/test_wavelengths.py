"""Air and vacuum: known lines, an independent implementation, and one function undoing the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specutils.utils.wcs_utils import air_to_vac, vac_to_air

from albireo.observations.wavelengths import air_to_vacuum, vacuum_to_air

LINES = {"H alpha": (6562.79, 6564.61), "H beta": (4861.35, 4862.71), "[O III]": (5006.84, 5008.24)}
"""Air (NIST) and vacuum wavelengths in Angstrom as the SDSS line list has them."""


@pytest.mark.parametrize(("air", "vacuum"), LINES.values(), ids=LINES)
def test_known_lines(air: float, vacuum: float) -> None:
    assert air_to_vacuum(np.array([air]))[0] == pytest.approx(vacuum, abs=0.02)
    assert vacuum_to_air(np.array([vacuum]))[0] == pytest.approx(air, abs=0.02)


def test_the_difference_at_h_alpha_is_83_km_per_s() -> None:
    vacuum = air_to_vacuum(np.array([6562.79]))[0]
    assert (vacuum / 6562.79 - 1) * 299792.458 == pytest.approx(83, abs=1)


def test_specutils_agrees() -> None:
    import astropy.units as u

    grid = np.linspace(3500.0, 10500.0, 701)
    there = vac_to_air(grid * u.Angstrom, method="Ciddor1996").to_value("Angstrom")
    assert np.allclose(vacuum_to_air(grid), there, rtol=0, atol=1e-3)
    back = air_to_vac(grid * u.Angstrom, scheme="iteration", method="Ciddor1996").to_value("Angstrom")
    assert np.allclose(air_to_vacuum(grid), back, rtol=0, atol=1e-3)


@given(st.floats(2001.0, 30000.0))
def test_each_undoes_the_other(wavelength: float) -> None:
    grid = np.array([wavelength])
    assert np.allclose(vacuum_to_air(air_to_vacuum(grid)), grid, rtol=0, atol=1e-7)
    assert grid[0] == wavelength


def test_below_2000_angstrom_air_is_not_used() -> None:
    grid = np.array([1215.67, 1999.9])
    assert np.array_equal(air_to_vacuum(grid), grid)
    assert np.array_equal(vacuum_to_air(grid), grid)
