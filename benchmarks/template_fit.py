"""Redshift of a spectrum by chi-square against templates, as survey pipelines do it: the rival of heads on spectra.

Templates of a class are principal components of training spectra at rest, on a grid of equal velocity, found by
expectation and maximisation so that what a spectrum does not cover has no say (Bailey 2012, PASP 124, 1015). A spectrum
is compared at every shift by whole pixels with the templates of every class; the best chi-square is interpolated by a
parabola.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from albireo.observations.observation import Observation, Spectrum

Doubles = NDArray[np.float64]

STEP = 5e-4
"""Of ln wavelength: 150 km / s."""

OBSERVED = (np.log(3600.0), np.log(10400.0))
COMPONENTS = 6
ROUNDS = 12
RIDGE = 1e-3
"""Weight of the prior that components are small, so that few pixels do not decide many of them."""

MOST = 600
"""Training spectra of a class, evenly taken: six components need no more."""

LIGHTEST = 100.0
"""Inverse variance of a pixel, in units of the median flux, above which it counts no more: none drowns the others."""


@dataclass(frozen=True)
class Templates:
    """components (C, P) on ln rest wavelength `first` + STEP k; redshifts from 0 to z_max are tried."""

    components: Doubles
    first: float
    z_max: float

    @classmethod
    def fit(cls, observations: Sequence[Observation], redshifts: Doubles, seed: int = 0) -> Templates:
        """From spectra of known redshift, of one class."""
        z_max = float(np.max(redshifts)) * 1.02 + 0.02
        first = OBSERVED[0] - np.log1p(z_max)
        n = int(np.ceil((OBSERVED[1] - first) / STEP)) + 1
        chosen = range(0, len(observations), -(-len(observations) // MOST))
        flux, weight = np.zeros((len(chosen), n)), np.zeros((len(chosen), n))
        for row, k in enumerate(chosen):
            f, w = on_grid(observations[k])
            start = round((OBSERVED[0] - np.log1p(redshifts[k]) - first) / STEP)
            flux[row, start : start + len(f)], weight[row, start : start + len(f)] = f, w
        return cls(_components(flux, np.minimum(weight, LIGHTEST), seed), float(first), z_max)

    def gains(self, f: Doubles, w: Doubles) -> Doubles:
        """By how much the best mix of components lowers the chi-square of a flux of nothing, at shifts 0, 1, 2, ..."""
        c, length = len(self.components), self._length
        last = round((OBSERVED[0] - self.first) / STEP)
        of_weight, of_flux = (fft.rfft(x, length).conj() for x in (w, w * f))
        # Sums over pixels at every shift are correlations.
        products = fft.irfft(self._products * of_weight, length)[:, last::-1]
        right = fft.irfft(self._transformed * of_flux, length)[:, last::-1].T
        gram = np.empty((last + 1, c, c))
        for (a, b), row in zip(_pairs(c), products, strict=True):
            gram[:, a, b] = gram[:, b, a] = row
        damped = RIDGE * (np.trace(gram, axis1=1, axis2=2) / c + 1e-12)
        share = np.linalg.solve(gram + damped[:, None, None] * np.eye(c), right[..., None])[..., 0]
        return np.asarray((right * share).sum(axis=1))

    @property
    def _length(self) -> int:
        """Of a transform in which the two ends do not meet."""
        return int(fft.next_fast_len(self.components.shape[1] + int((OBSERVED[1] - OBSERVED[0]) / STEP), real=True))

    @cached_property
    def _transformed(self) -> NDArray[np.complex128]:
        return np.asarray(fft.rfft(self.components, self._length))

    @cached_property
    def _products(self) -> NDArray[np.complex128]:
        pairs = [self.components[a] * self.components[b] for a, b in _pairs(len(self.components))]
        return np.asarray(fft.rfft(np.array(pairs), self._length))


@dataclass(frozen=True)
class TemplateFit:
    """Templates by class; the class and the shift of least chi-square give the redshift."""

    templates: Mapping[str, Templates]

    @classmethod
    def fit(
        cls, observations: Sequence[Observation], redshifts: Doubles, classes: Sequence[str], seed: int = 0
    ) -> TemplateFit:
        """From spectra of known redshift and class."""
        of = np.array(classes)
        members = {name: np.flatnonzero(of == name) for name in sorted(set(of.tolist()))}
        return cls(
            {
                name: Templates.fit([observations[k] for k in rows], redshifts[rows], seed)
                for name, rows in members.items()
            }
        )

    def redshift(self, observation: Observation) -> float:
        """0 if the object has no good pixel."""
        f, w = on_grid(observation)
        if not w.any():
            return 0.0
        gain = max((one.gains(f, w) for one in self.templates.values()), key=lambda found: float(found.max()))
        k = int(gain.argmax())
        fraction = 0.0
        if 0 < k < len(gain) - 1:
            a, b, c = gain[k - 1 : k + 2]
            fraction = 0.5 * (a - c) / (a - 2 * b + c) if a - 2 * b + c < 0 else 0.0
        return float(np.expm1((k + fraction) * STEP))


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


def _pairs(c: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(c) for b in range(a + 1)]


def _components(flux: Doubles, weight: Doubles, seed: int) -> Doubles:
    """(COMPONENTS, P) of flux (N, P) by alternating weighted least squares; the first begins as the weighted mean."""
    c = min(COMPONENTS, len(flux))
    basis = np.random.default_rng(seed).normal(size=(c, flux.shape[1])) * 0.1
    total = weight.sum(axis=0)
    weighted = weight * flux
    basis[0] = np.divide(weighted.sum(axis=0), total, out=np.zeros(len(total)), where=total > 0)
    for _ in range(ROUNDS):
        share = _solved(basis, weight, weighted)
        basis = _solved(share.T, weight.T, weighted.T).T
        basis /= np.maximum(np.sqrt((basis**2).mean(axis=1, keepdims=True)), 1e-12)
    return np.asarray(basis)


def _solved(basis: Doubles, weight: Doubles, weighted: Doubles) -> Doubles:
    """(N, C) shares of basis (C, P) in every row (N, P) of what has these weights."""
    c = len(basis)
    gram = np.empty((len(weight), c, c))
    for a, b in _pairs(c):
        gram[:, a, b] = gram[:, b, a] = weight @ (basis[a] * basis[b])
    damped = RIDGE * (np.trace(gram, axis1=1, axis2=2) / c + 1e-9)
    return np.asarray(
        np.linalg.solve(gram + damped[:, None, None] * np.eye(c), (weighted @ basis.T)[..., None])[..., 0]
    )
