"""What a head must beat: a trivial model, and the best of boosted trees, a small network and a support vector machine.

    features  observations as one table of raw inputs, NaN = missing: what the rivals read
    trivial   the median of the labels, the commonest class
    best      rivals fitted on the training part; the one that is best on the validation part

Everything is deterministic given the seed. Needs scikit-learn (extra `train`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import LABEL_KEYS, MODALITIES
from albireo.observations.observation import Coefficients, Image, Observation, Payload, Scalar, Spectrum

Doubles = NDArray[np.float64]
Task = Literal["regression", "classification"]

SPECTRUM_GRID = np.exp(np.linspace(np.log(3600.0), np.log(9800.0), 501))
"""Angstrom: edges of 500 bins of equal velocity, in which spectra are averaged."""

MOST_SUPPORT = 4000
"""Training objects up to which a support vector machine is tried: its cost grows with their square."""

CHOOSING = 4000
"""Training objects that models of numbers are compared by; the best one is then fitted to all there are."""

WIDE = 200
"""Inputs from which trees are fewer, coarser, and learn faster: they cost as many times more."""

FAINT = {"nanomaggy": 0.1, "uJy": 0.1, "electron / s": 10.0}
"""Softening of arcsinh magnitudes, in the unit: fluxes below it are hardly measured."""


# Inputs


def features(observations: Sequence[Observation]) -> tuple[Doubles, tuple[str, ...]]:
    """Raw inputs (N, F) and their names, NaN where an object lacks one.

    Fluxes are arcsinh magnitudes, with the colours between neighbouring bands of a survey; coefficients are over their
    norm, with its logarithm; spectra are averaged in 500 bins over their median, with its logarithm; of images the
    arcsinh of the flux in five apertures. Extras are read like data; labels never.
    """
    blocks: list[dict[str, float]] = []
    for one in observations:
        row: dict[str, float] = {}
        measured: dict[str, Payload] = {**one.data, **one.extras}
        for key, payload in measured.items():
            if key in LABEL_KEYS:
                continue
            row |= _numbers(key, payload)
        blocks.append(row)
    names = tuple(
        sorted(dict.fromkeys(name for row in blocks for name in row), key=lambda name: _RANK.get(_key(name), 99))
    )
    table = np.array([[row.get(name, np.nan) for name in names] for row in blocks], np.float64).reshape(len(blocks), -1)
    bands = [k for k, name in enumerate(names) if name.startswith("mag ")]
    pairs = [(a, b) for a, b in pairwise(bands) if _camera(names[a]) == _camera(names[b])]
    colours = [table[:, a] - table[:, b] for a, b in pairs]
    named = tuple(f"{names[a]} - {names[b]}" for a, b in pairs)
    return np.column_stack([table, *colours]), (*names, *named)


def principal(observations: Sequence[Observation], dim: int, seed: int) -> NDArray[np.float32]:
    """PCA (N, dim or fewer) of `features`, standardised, missing ones at their mean."""
    from sklearn.decomposition import PCA as Components

    table, _ = features(observations)
    with np.errstate(invalid="ignore"):
        there = np.isfinite(table)
        count = np.maximum(there.sum(axis=0), 1)
        mean = np.where(there, table, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.where(there, (table - mean) ** 2, 0.0).sum(axis=0) / count)
    scaled = np.where(there, (table - mean) / np.where(spread > 0, spread, 1.0), 0.0).clip(-10, 10)
    n = min(dim, *scaled.shape)
    fitted = Components(n_components=n, svd_solver="randomized", random_state=seed).fit_transform(scaled)
    return np.asarray(fitted, np.float32)


_RANK = {key: k for k, key in enumerate(MODALITIES)}
"""Place of a modality in the table: bands of a survey stand there in order of wavelength."""


def _key(name: str) -> str:
    """The token key or the extra that a feature is of."""
    return name.removeprefix("mag ").split(" ")[0]


def _camera(name: str) -> str:
    """What comes before the bands of a survey: neighbours of the same are one set of filters."""
    key = _key(name)
    return MODALITIES[key].survey if key in MODALITIES else key.split(".")[0]


def _numbers(key: str, payload: Payload) -> dict[str, float]:
    if isinstance(payload, Scalar):
        if payload.unit == "mag" and not key.startswith(("tok_a_", "tok_ebv", "sdss.extinction")):
            return {f"mag {key}": payload.value}
        if (softening := FAINT.get(payload.unit)) is not None:
            return {f"mag {key}": float(-2.5 / np.log(10.0) * np.arcsinh(payload.value / (2.0 * softening)))}
        return {key: payload.value}
    if isinstance(payload, Coefficients):
        return _scaled(key, payload.values.astype(np.float64), float(np.linalg.norm(payload.values)))
    if isinstance(payload, Spectrum):
        flux = _binned(payload)
        return _scaled(key, flux, float(np.nanmedian(np.abs(flux))) if np.isfinite(flux).any() else np.nan)
    return _apertures(key, payload) if isinstance(payload, Image) else {}


def _scaled(key: str, values: Doubles, norm: float) -> dict[str, float]:
    norm = norm if norm > 0 else np.nan
    numbers = {f"{key} {k}": float(v) for k, v in enumerate(values / norm)}
    return numbers | {f"{key} log norm": float(np.log10(norm))}


def _binned(spectrum: Spectrum) -> Doubles:
    """Flux (500,) weighted by inverse variance, NaN where a bin has no good pixel."""
    good = ~spectrum.mask & (spectrum.ivar > 0)
    place = np.digitize(spectrum.wavelength[good], SPECTRUM_GRID) - 1
    inside = (place >= 0) & (place < len(SPECTRUM_GRID) - 1)
    n, weight = len(SPECTRUM_GRID) - 1, spectrum.ivar[good][inside].astype(np.float64)
    total = np.bincount(place[inside], weights=weight * spectrum.flux[good][inside], minlength=n)
    weights = np.bincount(place[inside], weights=weight, minlength=n)
    return np.asarray(np.divide(total, weights, out=np.full(n, np.nan), where=weights > 0))


def _apertures(key: str, image: Image) -> dict[str, float]:
    """Of each band the arcsinh flux inside 2, 4, 8, 16 and 32 pixels of the centre, masked pixels as 0."""
    height, width = image.flux.shape[1:]
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2)
    flux = np.where(image.mask, 0.0, image.flux)
    return {
        f"{key} {band} {r}": float(np.arcsinh(plane[radius <= r].sum() / 0.1))
        for band, plane in zip(image.bands, flux, strict=True)
        for r in (2, 4, 8, 16, 32)
    }


# Models


@dataclass(frozen=True)
class Rival:
    """A fitted model: its name, and predict, (N, F) -> (N,) numbers or (N, C) probabilities of `classes`.

    off  (M,) how far off it was on objects that had not taught it, for conformal intervals: absolute errors, of
         redshifts over 1 + z as predicted; () of classes
    """

    name: str
    predict: Callable[[Doubles], Doubles]
    classes: tuple[str, ...] = ()
    off: Doubles = field(default_factory=lambda: np.zeros(0))


def trivial(task: Task, labels: NDArray[Any], redshift: bool = False) -> Rival:
    """Without inputs: the median of the labels, or the shares of the classes."""
    if task == "regression":
        numbers = np.asarray(labels, np.float64)
        middle = float(np.median(numbers))
        return Rival(
            "median", lambda x: np.full(len(x), middle), off=np.abs(numbers - middle) / (1 + middle * redshift)
        )
    classes, counts = np.unique(np.asarray(labels, np.str_), return_counts=True)
    shares = counts / counts.sum()
    return Rival("class shares", lambda x: np.tile(shares, (len(x), 1)), tuple(classes.tolist()))


def best(
    task: Task,
    inputs: Doubles,
    labels: NDArray[Any],
    validation: tuple[Doubles, NDArray[Any]],
    seed: int = 0,
    redshift: bool = False,
) -> Rival:
    """Of all models fitted to `inputs` (N, F) and `labels` (N,) the best on the validation part, fitted again to both.

    Best is the least mean squared error of numbers (of redshifts the absolute error: their few outliers are counted
    apart), the least negative log likelihood of classes. Inputs that are missing or alike everywhere are left out.
    """
    told = np.array([len(np.unique(column[np.isfinite(column)])) > 1 for column in inputs[:CHOOSING].T], bool)
    if not told.any():
        return trivial(task, np.concatenate([labels, validation[1]]), redshift)
    known, new = inputs[:, told], (validation[0][:, told], validation[1])
    rival = (
        _regression(known, np.asarray(labels, np.float64), new, seed, redshift)
        if task == "regression"
        else _classification(known, np.asarray(labels, np.str_), new, seed)
    )
    return replace(rival, predict=lambda other: rival.predict(other[:, told]))


def _regression(x: Doubles, y: Doubles, validation: tuple[Doubles, NDArray[Any]], seed: int, redshift: bool) -> Rival:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.svm import SVR

    middle, spread = float(np.mean(y)), float(np.std(y)) or 1.0
    scaled = (y - middle) / spread
    models: dict[str, Any] = {
        "boosted trees": HistGradientBoostingRegressor(
            loss="absolute_error" if redshift else "squared_error", min_samples_leaf=min(20, max(2, len(y) // 20)),
            early_stopping=False, random_state=seed, **_rounds(x, 400),
        )
    } | {
        f"network (decay {alpha:g})": _prepared(
            MLPRegressor(
                hidden_layer_sizes=(128, 128), alpha=alpha, early_stopping=len(y) >= 100, n_iter_no_change=20,
                max_iter=300, random_state=seed,
            )
        )
        for alpha in (1e-4, 1e-1)
    }  # fmt: skip
    if len(y) <= MOST_SUPPORT:
        models["support vectors"] = _prepared(SVR(C=10.0, epsilon=0.02))
    new, truth = validation[0], (np.asarray(validation[1], np.float64) - middle) / spread
    errors = {}
    for name, model in models.items():
        _quietly(model.fit, x[:CHOOSING], scaled[:CHOOSING])
        errors[name] = np.abs(np.asarray(model.predict(new)) - truth)
    name = min(errors, key=lambda one: float(np.mean(errors[one] ** (1 if redshift else 2))))
    chosen = models[name]
    scale = np.abs(1 + middle + spread * np.asarray(chosen.predict(new))) if redshift else 1.0
    off = spread * errors[name] / scale
    _quietly(chosen.fit, np.concatenate([x, new]), np.concatenate([scaled, truth]))
    return Rival(name, lambda other: middle + spread * np.asarray(chosen.predict(other)), off=off)


def _classification(x: Doubles, y: NDArray[np.str_], validation: tuple[Doubles, NDArray[Any]], seed: int) -> Rival:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.neural_network import MLPClassifier

    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        return trivial("classification", y)
    models: dict[str, Any] = {
        "boosted trees": HistGradientBoostingClassifier(
            min_samples_leaf=min(20, max(2, len(y) // 20)), early_stopping=False, random_state=seed,
            **_rounds(x, 200),
        )
    } | {
        f"network (decay {alpha:g})": _prepared(
            MLPClassifier(hidden_layer_sizes=(128,), alpha=alpha, max_iter=300, random_state=seed)
        )
        for alpha in (1e-4, 1.0)
    }  # fmt: skip
    truth = np.asarray(validation[1], np.str_)
    known = np.isin(truth, classes)
    new, column = validation[0][known], np.searchsorted(classes, truth[known])
    losses = {}
    for name, model in models.items():
        _quietly(model.fit, x, index)
        p = model.predict_proba(new)[np.arange(len(column)), column] if len(column) else np.ones(1)
        losses[name] = float(-np.log(np.maximum(p, 1e-12)).mean())
    name = min(losses, key=lambda one: losses[one])
    chosen = models[name]
    _quietly(chosen.fit, np.concatenate([x, new]), np.concatenate([index, column]))
    return Rival(name, lambda other: np.asarray(chosen.predict_proba(other)), tuple(classes.tolist()))


def _rounds(x: Doubles, usual: int) -> dict[str, Any]:
    if x.shape[1] <= WIDE:
        return {"max_iter": usual, "learning_rate": 0.05}
    return {"max_iter": 150, "learning_rate": 0.12, "max_bins": 63}


def _prepared(model: Any) -> Any:
    """The model behind scaling to the quartiles, clipped at 10 of them, missing values as medians beside a mark."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, RobustScaler

    return make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        RobustScaler(),
        FunctionTransformer(_clipped),
        model,
    )


def _clipped(x: Doubles) -> Doubles:
    return np.clip(x, -10.0, 10.0)


def _quietly(fit: Callable[..., Any], *args: Any) -> None:
    """Without the warning that a network had not converged: how good it is, the validation part says."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(*args)
