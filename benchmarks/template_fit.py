"""Redshift of a spectrum by chi-square against templates, as survey pipelines do it: the rival of heads on spectra.

Templates are principal components of training spectra at rest, on a grid of equal velocity, found by expectation and
maximisation so that what a spectrum does not cover has no say (Bailey 2012, PASP 124, 1015). A spectrum is compared at
every shift by whole pixels; the best chi-square is interpolated by a parabola.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.observations.observation import Observation, Spectrum

Doubles = NDArray[np.float64]

STEP = 5e-4
"""Of ln wavelength: 150 km / s."""

OBSERVED = (np.log(3600.0), np.log(10400.0))
COMPONENTS = 6
ROUNDS = 12
RIDGE = 1e-3
"""Weight of the prior that components are small, so that few pixels do not decide many of them."""


@dataclass(frozen=True)
class Templates:
    """components (C, P) on ln rest wavelength `first` + STEP k; redshifts from 0 to z_max are tried."""

    components: Doubles
    first: float
    z_max: float

    @classmethod
    def fit(cls, observations: Sequence[Observation], redshifts: Doubles, seed: int = 0) -> Templates:
        """From spectra of known redshift."""
        z_max = float(np.max(redshifts)) * 1.02 + 0.02
        first = OBSERVED[0] - np.log1p(z_max)
        n = int(np.ceil((OBSERVED[1] - first) / STEP)) + 1
        flux, weight = np.zeros((len(observations), n)), np.zeros((len(observations), n))
        for k, (one, z) in enumerate(zip(observations, redshifts, strict=True)):
            f, w = on_grid(one)
            start = round((OBSERVED[0] - np.log1p(z) - first) / STEP)
            flux[k, start : start + len(f)], weight[k, start : start + len(f)] = f, w
        # No spectrum counts for more than others, and no pixel for more than ten to one.
        weight = np.minimum(weight, 100.0)
        return cls(_components(flux, weight, seed), float(first), z_max)

    def redshift(self, observation: Observation) -> float:
        """The shift of least chi-square; 0 if the object has no good pixel."""
        f, w = on_grid(observation)
        if not w.any():
            return 0.0
        last = round((OBSERVED[0] - self.first) / STEP)
        shifts = np.arange(0, last + 1)
        gain = np.array([self._gain(f, w, last - int(shift)) for shift in shifts])
        k = int(gain.argmax())
        fraction = 0.0
        if 0 < k < len(gain) - 1:
            a, b, c = gain[k - 1 : k + 2]
            fraction = 0.5 * (a - c) / (a - 2 * b + c) if a - 2 * b + c < 0 else 0.0
        return float(np.expm1((shifts[k] + fraction) * STEP))

    def _gain(self, f: Doubles, w: Doubles, start: int) -> float:
        """By how much the best mix of components lowers the chi-square of a flux of nothing."""
        t = self.components[:, start : start + len(f)]
        m = min(t.shape[1], len(f))
        t, fm, wm = t[:, :m], f[:m], w[:m]
        tw = t * wm
        gram = tw @ t.T
        gram[np.diag_indices_from(gram)] += RIDGE * (np.trace(gram) / len(gram) + 1e-12)
        right = tw @ fm
        return float(right @ np.linalg.solve(gram, right))


def on_grid(observation: Observation) -> tuple[Doubles, Doubles]:
    """Flux over its median, and inverse variance of that, on the observed grid; 0 where nothing is known."""
    spectrum = next(one for one in observation.data.values() if isinstance(one, Spectrum))
    n = int((OBSERVED[1] - OBSERVED[0]) / STEP)
    good = ~spectrum.mask & (spectrum.ivar > 0) & np.isfinite(spectrum.flux)
    place = np.floor((np.log(spectrum.wavelength) - OBSERVED[0]) / STEP).astype(int)
    good &= (place >= 0) & (place < n)
    w = np.bincount(place[good], weights=spectrum.ivar[good].astype(np.float64), minlength=n)
    total = np.bincount(place[good], weights=spectrum.ivar[good].astype(np.float64) * spectrum.flux[good], minlength=n)
    f = np.divide(total, w, out=np.zeros(n), where=w > 0)
    scale = float(np.median(np.abs(f[w > 0]))) if (w > 0).any() else 0.0
    return (f / scale, w * scale**2) if scale > 0 else (np.zeros(n), np.zeros(n))


def _components(flux: Doubles, weight: Doubles, seed: int) -> Doubles:
    """(COMPONENTS, P) of flux (N, P) by alternating weighted least squares; the first begins as the weighted mean."""
    c = min(COMPONENTS, len(flux))
    basis = np.random.default_rng(seed).normal(size=(c, flux.shape[1])) * 0.1
    total = weight.sum(axis=0)
    basis[0] = np.divide((flux * weight).sum(axis=0), total, out=np.zeros(len(total)), where=total > 0)
    eye = np.eye(c)
    for _ in range(ROUNDS):
        gram = np.einsum("cp,np,dp->ncd", basis, weight, basis, optimize=True)
        right = np.einsum("cp,np->nc", basis, weight * flux, optimize=True)
        share = np.linalg.solve(gram + RIDGE * (np.trace(gram, axis1=1, axis2=2)[:, None, None] / c + 1e-9) * eye,
                                right[..., None])[..., 0]  # fmt: skip
        gram = np.einsum("nc,np,nd->pcd", share, weight, share, optimize=True)
        right = np.einsum("nc,np->pc", share, weight * flux, optimize=True)
        damped = gram + RIDGE * (np.trace(gram, axis1=1, axis2=2)[:, None, None] / c + 1e-9) * eye
        basis = np.linalg.solve(damped, right[..., None])[..., 0].T
        basis /= np.maximum(np.sqrt((basis**2).mean(axis=1, keepdims=True)), 1e-12)
    return np.asarray(basis)
