"""Do the numbers of a checkpoint mean something? Figures of what it makes of the bundled and simulated objects.

Of AION-1 each has a bound, wide enough for a sky that it was not trained on; most random weights are beyond it. Of a
checkpoint that ships its own figures (service/recipe.py) those are expected. Of any other they are told, not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from albireo.models import metrics
from albireo.models.engine import Tokens
from albireo.models.redshift import Posterior, redshift_posterior
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.service.subjects import Subject
from albireo.service.verify_checkpoint import Check, Evidence, Measured, NotPossible

GROUP = "meaning"

RECORDED = 0.06
"""How far a figure may be from the one that was recorded, above 1 as a share of it: another processor may round a token
the other way, and then one of some twenty objects changes sides."""

SPECTRA = ("tok_spectrum_desi", "tok_spectrum_sdss")
IMAGES = ("tok_image", "tok_image_hsc")
FLUXES = tuple(f"tok_flux_{band}" for band in ("g", "r", "i", "z", "w1", "w2"))
HIDDEN = "tok_flux_r"

BIN = 32
"""Pixels of a spectrum that are averaged, weighted by inverse variance: about those of one of AION-1's tokens."""

NARROW = 0.3
"""Width of a 95 % interval of redshift below which it says something: the grid is 1 wide."""

Z_MOST = 0.95
"""Redshifts that are asked for: the grid ends at 1."""

NAMINGS = 1000
SEED = 1


@dataclass(frozen=True)
class Figure:
    """A number that says how much something works.

    side, bound  what it must not be below ("at least") or above ("at most") for AION-1's weights
    reason       why that bound
    compute      (the number, of what)
    """

    name: str
    unit: str
    side: Literal["at least", "at most"]
    bound: float
    reason: str
    compute: Callable[[Evidence], tuple[float, str]]


def checks(recorded: Mapping[str, float] | None) -> tuple[Check, ...]:
    """A check of each figure: against the recorded ones, or else against the bounds of AION-1."""
    if recorded is None:
        return tuple(
            Check(GROUP, one.name, f"{one.side} {one.bound:g}{one.unit}", one.reason, partial(_bounded, one))
            for one in FIGURES
        )
    return tuple(
        Check(GROUP, one.name, _as_recorded(one, recorded), "its recipe.json", partial(_same, one, recorded))
        for one in FIGURES
    )


def checks_of_files(subjects: Sequence[Subject]) -> tuple[Check, ...]:
    """The figures of other objects, whose files state class and redshift, against AION-1's bounds."""
    opened: list[Evidence] = []

    def measure(figure: Figure, evidence: Evidence) -> Measured:
        if not opened:
            opened.append(evidence.of_objects(subjects))
        return _bounded(figure, opened[0])

    group = f"{GROUP}, of your files"
    return tuple(
        Check(group, one.name, f"{one.side} {one.bound:g}{one.unit}", one.reason, partial(measure, one))
        for one in FIGURES
    )


def _bounded(figure: Figure, evidence: Evidence) -> Measured:
    value, what = figure.compute(evidence)
    text = f"{value:.3f}{figure.unit}, {what}"
    if not evidence.checkpoint.of_aion:
        return Measured(None, f"{text}; not judged", value, "nothing is known: it is not AION-1")
    good = value >= figure.bound if figure.side == "at least" else value <= figure.bound
    return Measured(good, text, value)


def _same(figure: Figure, recorded: Mapping[str, float], evidence: Evidence) -> Measured:
    value, what = figure.compute(evidence)
    known = recorded.get(figure.name)
    same = known is not None and abs(value - known) <= _allowed(known)
    return Measured(same, f"{value:.3f}{figure.unit}, {what}", value)


def _allowed(known: float) -> float:
    return RECORDED * max(1.0, abs(known))


def _as_recorded(figure: Figure, recorded: Mapping[str, float]) -> str:
    known = recorded.get(figure.name)
    return "nothing was recorded" if known is None else f"{known:.3f}{figure.unit} within {_allowed(known):.2g}"


# Codecs


def images_come_back(evidence: Evidence) -> tuple[float, str]:
    from albireo.tokenizers.image import CLAMP  # torch takes seconds to load

    found = []
    for key in _read(evidence, IMAGES):
        for one, tokens in _with(evidence, key):
            image = one.data[key]
            assert isinstance(image, Image)
            limit = np.array([CLAMP[band] for band in image.bands])[:, None, None]
            flux = np.clip(image.flux.astype(np.float64), -limit, limit)
            back = evidence.engine.values(key, tokens.ids[key][None], bands=image.bands)[0].astype(np.float64)
            found += [_r2(b, f) for b, f in zip(back, flux, strict=True)]
    return _median(found), f"median R2 of {len(found)} planes"


def spectra_come_back(evidence: Evidence) -> tuple[float, str]:
    found = []
    for key in _read(evidence, SPECTRA):
        grid = evidence.engine.wavelength(key).astype(np.float64)
        for one, tokens in _with(evidence, key):
            spectrum = one.data[key]
            assert isinstance(spectrum, Spectrum)
            back = evidence.engine.values(key, tokens.ids[key][None])[0].astype(np.float64)
            weight = np.where(spectrum.mask, 0.0, spectrum.ivar.astype(np.float64))
            at = np.interp(spectrum.wavelength, grid, back, left=0, right=0)
            flux, total = _binned(np.nan_to_num(spectrum.flux.astype(np.float64)) * weight), _binned(weight)
            said, good = _binned(at * weight), total > 0
            found.append(_r2(said[good] / total[good], flux[good] / total[good]))
    return _median(found), f"median R2 of {len(found)} spectra in bins of {BIN} pixels"


def _binned(column: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(column) // BIN
    out: NDArray[np.float64] = column[: n * BIN].reshape(n, BIN).sum(axis=1)
    return out


def image_codes(evidence: Evidence) -> tuple[float, str]:
    return _codes(evidence, IMAGES, 0)


def spectrum_codes(evidence: Evidence) -> tuple[float, str]:
    return _codes(evidence, SPECTRA, 1)


def _codes(evidence: Evidence, keys: tuple[str, ...], first: int) -> tuple[float, str]:
    """Different codes per hundred tokens; `first` leaves the norm of spectra out."""
    ids = [tokens.ids[key][first:] for key in _read(evidence, keys) for _, tokens in _with(evidence, key)]
    if not ids:
        raise NotPossible("no object has any")
    together = np.concatenate(ids)
    different = len(np.unique(together))
    return 100 * different / len(together), f"{different} in {len(together)} tokens"


# Encoder and decoder


def hidden_flux(evidence: Evidence) -> tuple[float, str]:
    engine = evidence.engine
    _predicts(evidence, HIDDEN)
    given, truth = [], []
    for one, tokens in evidence.having(HIDDEN, "tok_flux_g", "tok_flux_i", "tok_flux_z"):
        flux = one.data[HIDDEN]
        assert isinstance(flux, Scalar)
        if flux.value > 0:
            given.append(Tokens({key: tokens.ids[key] for key in FLUXES if key in tokens.ids and key != HIDDEN}))
            truth.append(flux.value)
    book = engine.values(HIDDEN, np.arange(engine.n_codes(HIDDEN))[:, None])[:, 0].astype(np.float64)
    said = [_middle(row[HIDDEN][0, : len(book)], book) for row in engine.logits(given, [HIDDEN])]
    off = np.abs(np.log10(np.maximum(said, 1e-6) / np.array(truth)))
    return float(np.median(off)), f"median of {len(truth)} objects, as |log10|"


def _middle(logits: NDArray[np.float32], book: NDArray[np.float64]) -> float:
    """The value of the code below and above which there is half of the probability."""
    e = np.exp(logits.astype(np.float64) - logits.max())
    return float(book[np.searchsorted(np.cumsum(e / e.sum()), 0.5).clip(0, len(book) - 1)])


def hidden_image(evidence: Evidence) -> tuple[float, str]:
    engine, key = evidence.engine, "tok_image"
    _predicts(evidence, key)
    chosen = [tokens.ids[key] for _, tokens in evidence.having(key)[: len(evidence.samples)]]
    rng = np.random.default_rng(SEED)
    hidden = [rng.random(len(ids)) < 0.5 for ids in chosen]
    given = [Tokens({key: ids}, {key: gone}) for ids, gone in zip(chosen, hidden, strict=True)]
    rows = engine.logits(given, [{key: np.flatnonzero(gone)} for gone in hidden])
    surprise = []
    for ids, gone, row in zip(chosen, hidden, rows, strict=True):
        logits = row[key].astype(np.float64)
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        surprise += (total - logits[np.arange(len(logits)), ids[gone]]).tolist()
    return float(np.mean(surprise) / np.log(engine.n_codes(key))), f"of {len(surprise)} tokens"


def redshifts_are_near(evidence: Evidence) -> tuple[float, str]:
    posteriors, truth = _redshifts(evidence)
    said = np.array([one.quantile(0.5) for one in posteriors])
    off = np.abs(metrics.redshift_error(said, truth))
    return float(np.median(off)), f"median |dz| / (1 + z) of {len(truth)} galaxies and quasars"


def redshifts_are_sure(evidence: Evidence) -> tuple[float, str]:
    posteriors, truth = _redshifts(evidence)
    ends = [(one.quantile(0.025), one.quantile(0.975)) for one in posteriors]
    good = [low <= z <= high and high - low < NARROW for (low, high), z in zip(ends, truth, strict=True)]
    width = median(high - low for low, high in ends)
    return float(np.mean(good)), f"of {len(truth)}; the median interval is {width:.2f} wide"


def _redshifts(evidence: Evidence) -> tuple[list[Posterior], NDArray[np.float64]]:
    """Posterior by the spectrum alone, and redshift, of galaxies and quasars on the grid."""
    _predicts(evidence, "tok_z")
    given, truth = [], []
    for one, tokens in _spectra(evidence):
        z = float(one.metadata["redshift"])
        if str(one.metadata["class"]) in ("GALAXY", "QSO") and z < Z_MOST:
            given.append(tokens)
            truth.append(z)
    return redshift_posterior(evidence.engine, given), np.array(truth)


def neighbours_of_a_class(evidence: Evidence) -> tuple[float, str]:
    found = _spectra(evidence)
    vectors = np.stack([one.values for one in evidence.engine.embed([tokens for _, tokens in found])]).astype(float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    score = unit @ unit.T
    np.fill_diagonal(score, -np.inf)
    nearest = score.argmax(axis=1)
    classes = np.array([str(one.metadata["class"]) for one, _ in found])
    share = float((classes == classes[nearest]).mean())
    rng = np.random.default_rng(SEED)
    chance = [float((named == named[nearest]).mean()) for named in (rng.permutation(classes) for _ in range(NAMINGS))]
    return float((np.array(chance) < share).mean()), f"{share:.2f} of {len(found)} nearest neighbours share the class"


def _spectra(evidence: Evidence) -> list[tuple[Observation, Tokens]]:
    """Objects of known class and redshift through their spectrum alone; of two, DESI's."""
    keys = _read(evidence, SPECTRA)
    out = []
    for one in evidence.objects:
        tokens = evidence.tokens.get(one.id)
        key = next((key for key in keys if tokens is not None and key in tokens.ids), None)
        if tokens is not None and key is not None and {"class", "redshift"} <= one.metadata.keys():
            out.append((one, Tokens({key: tokens.ids[key]})))
    if not out:
        raise NotPossible("no object has a spectrum")
    return out


# What all share


def _read(evidence: Evidence, keys: tuple[str, ...]) -> list[str]:
    """Those of the modalities that are read."""
    found = [key for key in keys if key in evidence.engine.inputs]
    if not found:
        raise NotPossible(f"it reads no {MODALITIES[keys[0]].kind} of these surveys")
    return found


def _with(evidence: Evidence, key: str) -> list[tuple[Observation, Tokens]]:
    try:
        return evidence.having(key)
    except NotPossible:
        return []


def _predicts(evidence: Evidence, key: str) -> None:
    if key not in evidence.engine.outputs or key not in evidence.engine.bank:
        raise NotPossible(f"it does not predict {MODALITIES[key].name}")


def _r2(said: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):
        return metrics.r2(said.ravel(), truth.ravel()) if np.isfinite(said).all() else -np.inf


def _median(found: list[float]) -> float:
    if not found:
        raise NotPossible("no object has any")
    return float(np.median(found))


FIGURES = (
    Figure("images come back", "", "at least", 0.8, "R2 0 is a flat image; a trained codec keeps bright objects",
           images_come_back),
    Figure("spectra come back", "", "at least", 0.8, "the paper reports R2 0.994 on its spectra; 0 is a flat one",
           spectra_come_back),
    Figure("image codes in use", " per 100 tokens", "at least", 0.1,
           "a codec fed with another scale collapses; trained ones were seen to use few", image_codes),
    Figure("spectrum codes in use", " per 100 tokens", "at least", 2.0,
           "the same; of 1024 codes 934 were seen in use", spectrum_codes),
    Figure("a hidden flux", " dex", "at most", 0.1, "r lies between g and i: within 25 % for every kind of object",
           hidden_flux),
    Figure("hidden image tokens", " of ln(codes)", "at most", 0.8,
           "what it was trained for; 1 is a guess among all codes", hidden_image),
    Figure("redshift of a spectrum", "", "at most", 0.05, "tok_z was learnt; the paper's heads on spectra have R2 1",
           redshifts_are_near),
    Figure("redshift intervals", "", "at least", 0.5,
           f"share of 95 % intervals that hold the redshift and are narrower than {NARROW}", redshifts_are_sure),
    Figure("neighbours of a class", "", "at least", 0.95, "share of 1,000 random namings of the objects that do worse",
           neighbours_of_a_class),
)  # fmt: skip
"""In the order in which they are computed."""
