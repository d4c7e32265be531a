"""Does a head apply to an object? What its training objects covered, and how far from them an object lies.

Facts       what is noted of an observation beside its token states
Coverage    of the inputs of the training objects, and the flags of an object that is outside of it
Typicality  distance in the features of a head, as a share of held-out training objects
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.models.head_arrays import taken
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar

RANGE = (0.1, 99.9)
"""Percentiles of the training objects that bound what a head has seen, of labels and of brightness."""

USUAL = 0.95
"""Share of the training objects that must have a band for its lack to be flagged."""

UNLIKE = 0.01
"""Typicality below which an object is flagged."""

ENOUGH = 50
"""Held-out objects with the same modalities that it takes to compare with these only."""

AXES = 32
"""Directions of the features of which the variance is kept one by one."""

_BRIGHTNESS = re.compile(r"(?:tok_)?(flux|mag)_(\w+)$")

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """What is noted of an observation beside its token states.

    ra, dec  degrees ICRS, or None
    surveys  whose measurements it has, in alphabetical order, joined by "+"
    scalars  token key -> value, in the unit of its modality
    bands    token key of an image -> its bands
    """

    id: str
    ra: float | None
    dec: float | None
    surveys: str
    scalars: Mapping[str, float]
    bands: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, observation: Observation) -> Facts:
        stated = {
            (key in observation.provenance and observation.provenance[key].survey) or MODALITIES[key].survey
            for key in observation.data
        }
        return cls(
            observation.id,
            observation.ra,
            observation.dec,
            "+".join(sorted(stated)),
            {key: float(one.value) for key, one in observation.data.items() if isinstance(one, Scalar)},
            {key: tuple(one.bands) for key, one in observation.data.items() if isinstance(one, Image)},
        )


@dataclass(frozen=True)
class Coverage:
    """Of the inputs of `n` training objects.

    modalities  token keys that any of them had, in the table's order, and the share of objects that had each
    sets        modality set -> objects; a set is a hexadecimal number whose bit i stands for modalities[i]
    brightness  token key of a flux or magnitude -> its RANGE, lowest and highest number
    bands       token key of an image -> band -> share of the images that had it
    z_limit     redshifts from here on are one token, or None if the checkpoint reads none
    """

    n: int
    modalities: Mapping[str, float]
    sets: Mapping[str, int]
    brightness: Mapping[str, tuple[float, float]]
    bands: Mapping[str, Mapping[str, float]]
    z_limit: float | None = None

    def __post_init__(self) -> None:
        """ValueError or TypeError for what cannot be: it may come from a file."""
        if unknown := set(self.modalities) - MODALITIES.keys():
            raise ValueError(f"no modalities {sorted(map(str, unknown))}")
        shares = [self.n, *self.modalities.values(), *self.sets.values()]
        shares += [number for pair in self.brightness.values() for number in pair]
        shares += [share for bands in self.bands.values() for share in bands.values()]
        shares += [] if self.z_limit is None else [self.z_limit]
        if not all(isinstance(number, int | float) for number in shares):
            raise TypeError("a coverage of something else than numbers")
        if any(len(pair) != 2 for pair in self.brightness.values()):
            raise ValueError("a range of brightness of something else than two numbers")

    @classmethod
    def of(cls, facts: Sequence[Facts], keys: Sequence[Sequence[str]], z_limit: float | None) -> Coverage:
        """Of training objects: their facts, and the token keys of each."""
        n = len(facts)
        counts = Counter(key for present in keys for key in set(present))
        modalities = {key: counts[key] / n for key in MODALITIES if key in counts}
        sets = Counter(_set_name(present, list(modalities)) for present in keys)
        brightness = {}
        for key in filter(_BRIGHTNESS.match, modalities):
            values = [one.scalars[key] for one in facts if key in one.scalars]
            if values:
                low, high = np.percentile(values, RANGE)
                brightness[key] = (float(low), float(high))
        images = {key: [one.bands[key] for one in facts if key in one.bands] for key in modalities}
        bands = {
            key: {band: sum(band in one for one in had) / len(had) for band in sorted(set().union(*had))}
            for key, had in images.items()
            if had
        }
        return cls(n, modalities, dict(sorted(sets.items())), brightness, bands, z_limit)

    def set_name(self, keys: Sequence[str]) -> str:
        """Name in `sets` of the token keys of an object, those that no training object had left out."""
        return _set_name(keys, list(self.modalities))

    def flags(self, facts: Facts, keys: Sequence[str]) -> list[str]:
        """Where an object's input is outside of what the training objects had; `keys` are its token keys."""
        out = []
        if set(keys) - self.modalities.keys() or self.set_name(keys) not in self.sets:
            out.append("modality_set_not_in_training")
        out += [f"no_{band}_band" for band in self._missing(facts, keys)]
        fainter, brighter, compared = self._outside(facts)
        # One noisy band is beyond 99.8 % of the training objects soon enough; half of the bands are not.
        out += ["fainter_than_training"] if compared and 2 * fainter >= compared else []
        out += ["brighter_than_training"] if compared and 2 * brighter >= compared else []
        if self.z_limit is not None and facts.scalars.get("tok_z", -np.inf) >= self.z_limit and "tok_z" in keys:
            out.append("z_token_saturated")
        return list(dict.fromkeys(out))

    def _missing(self, facts: Facts, keys: Sequence[str]) -> list[str]:
        """Bands, by their short names, that nearly all training objects had and this one has not."""
        photometric = {key: name[2] for key in self.modalities if (name := _BRIGHTNESS.match(key))}
        out = [band.lower() for key, band in photometric.items() if self.modalities[key] > USUAL and key not in keys]
        for key, shares in self.bands.items():
            had = facts.bands.get(key)
            if had is not None:
                out += [
                    band.split("-")[-1].lower() for band, share in shares.items() if share > USUAL and band not in had
                ]
        return out

    def _outside(self, facts: Facts) -> tuple[int, int, int]:
        """Bands in which an object is fainter, in which it is brighter, and that could be compared."""
        fainter = brighter = compared = 0
        for key, (low, high) in self.brightness.items():
            if key in facts.scalars:
                above, below = facts.scalars[key] > high, facts.scalars[key] < low
                magnitude = MODALITIES[key].unit == "mag"
                fainter += above if magnitude else below
                brighter += below if magnitude else above
                compared += 1
        return fainter, brighter, compared


def _set_name(keys: Sequence[str], modalities: Sequence[str]) -> str:
    return f"{sum(1 << i for i, key in enumerate(modalities) if key in keys):x}"


@dataclass(frozen=True)
class Typicality:
    """Mahalanobis distance from the training objects in the features of a head, and those of held-out objects.

    The covariance is shrunk towards a multiple of the unit matrix (Ledoit and Wolf 2004); its AXES largest directions
    are kept, the others share one variance.

    mean       (F,) of the training objects
    basis      (r, F) directions, of length 1
    variance   (r,) along each
    rest       variance in every other direction
    reference  modality set -> distances of held-out objects, ascending; "all" = all of them
    """

    mean: Doubles
    basis: Doubles
    variance: Doubles
    rest: float
    reference: Mapping[str, Doubles]

    @classmethod
    def fit(cls, training: Doubles, held_out: Doubles, sets: Sequence[str]) -> Typicality:
        """Features (n, F) of the training objects, (m, F) of held-out ones and the modality set of each of these."""
        mean = training.mean(axis=0)
        values, vectors = _shrunk(training - mean)
        kept = min(AXES, len(values))
        rest = float(values[kept:].mean()) if kept < len(values) else float(values[-1])
        made = cls(mean, vectors[:, :kept].T.copy(), values[:kept], rest, {})
        distance = made.distance(held_out)
        names = np.array(sets)
        reference = {"all": np.sort(distance)}
        for name, count in sorted(Counter(sets).items()):
            if count >= ENOUGH:
                reference[name] = np.sort(distance[names == name])
        return cls(mean, made.basis, made.variance, rest, reference)

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Typicality:
        """From what `arrays` gave."""
        marked = "reference."
        names = [name for name in arrays if name.startswith(marked)]
        reference = {name.removeprefix(marked): taken(arrays, name, None) for name in names}
        if "all" not in reference:
            raise KeyError("reference.all")
        mean = taken(arrays, "mean", None)
        basis = taken(arrays, "basis", None, len(mean))
        return cls(mean, basis, taken(arrays, "variance", len(basis)), float(taken(arrays, "rest", 1)[0]), reference)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What a head file must keep of it."""
        reference = {f"reference.{name}": distances for name, distances in self.reference.items()}
        return {
            "mean": self.mean,
            "basis": self.basis,
            "variance": self.variance,
            "rest": np.array([self.rest]),
            **reference,
        }

    def distance(self, features: Doubles) -> Doubles:
        """(n,) squared distance of features (n, F), in variances."""
        off = features - self.mean
        along = off @ self.basis.T
        across = np.maximum((off**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        out: Doubles = (along**2 / self.variance).sum(axis=1) + across / self.rest
        return out

    def of(self, features: Doubles, sets: Sequence[str]) -> Doubles:
        """(n,) share of held-out training objects, of the same modality set if there are enough, that lie farther."""
        out = np.empty(len(features))
        for i, (distance, name) in enumerate(zip(self.distance(features), sets, strict=True)):
            others = self.reference.get(name, self.reference["all"])
            out[i] = 1.0 - np.searchsorted(others, distance, side="right") / len(others)
        return out


def _shrunk(centred: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues, descending, and eigenvectors (columns) of the shrunk covariance of rows (n, F) with mean 0."""
    n, width = centred.shape
    covariance = centred.T @ centred / n
    average = np.trace(covariance) / width
    spread = ((covariance - average * np.eye(width)) ** 2).sum()
    noise = (((centred**2).sum(axis=1) ** 2).mean() - (covariance**2).sum()) / n
    shrinkage = min(1.0, noise / spread) if spread > 0 else 1.0
    values, vectors = np.linalg.eigh(covariance)
    values = (1 - shrinkage) * values[::-1] + shrinkage * average
    return np.maximum(values, 1e-12 + 1e-6 * average), vectors[:, ::-1]
