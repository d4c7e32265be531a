"""The questions that docs/science.md answers: which inputs, which labels, fitted to what and tested on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.heads import Task
from benchmarks.labelled import Dataset

SIZES: tuple[int | None, ...] = (100, 300, 1000, 3000, None)
"""Numbers of labels; None = all there are."""

TWO: tuple[int | None, ...] = (300, None)
"""The same where another question on such objects has the whole curve."""

MOST = 3000
"""Labels that are given at most where a question does not say otherwise: heads on spectra take hours with more."""

RELATIVE = 10.0
"""1e-17 erg / (s cm2 Angstrom): as bright as survey spectra often are."""

Keep = Callable[[Dataset], NDArray[np.bool_]]


def _everything(dataset: Dataset) -> NDArray[np.bool_]:
    return np.ones(len(dataset), bool)


def _of_class(*names: str) -> Keep:
    return lambda dataset: np.isin(dataset.labels["class"], names)


def _sure(dataset: Dataset) -> NDArray[np.bool_]:
    """ZWARNING 0, where the set has it."""
    warned = dataset.labels.get("zwarning")
    return _everything(dataset) if warned is None else np.asarray(warned == 0)


def _sure_of_class(*names: str) -> Keep:
    return lambda dataset: _sure(dataset) & _of_class(*names)(dataset)


def _cool(dataset: Dataset) -> NDArray[np.bool_]:
    """Stars that APOGEE gives abundances of: the others are hotter than 7,000 K mostly, and none is in the test set."""
    return np.isfinite(dataset.labels["fe_h"])


@dataclass(frozen=True)
class Question:
    """One task.

    task, targets   as heads know them; targets name label columns, with their units
    fitted, tested  names of sets; the same set is split by groups
    keys            modalities that are given to everybody, all others are taken away; one that no object has is absent
    needed          of each of these groups of keys an object must have one
    keep            which objects of a set count
    beside          the question about simulated objects that this one about real ones stands beside
    window          Angstrom: what is outside is taken from spectra, and the rest scaled to a median of RELATIVE, where
                    sets cover different wavelengths and state fluxes of no unit
    limit           of a redshift in km / s: farther off is a failure, which is listed with its picture
    most            labels that are given at most, None = all there are
    """

    name: str
    title: str
    task: Task
    targets: Mapping[str, str]
    fitted: str
    tested: str
    keys: tuple[str, ...]
    needed: tuple[tuple[str, ...], ...]
    sizes: tuple[int | None, ...] = SIZES
    keep: Keep = field(default=_everything)
    beside: str = ""
    window: tuple[float, float] | None = None
    limit: float | None = None
    most: int | None = MOST

    @property
    def main(self) -> str:
        """The metric of the curves over numbers of labels."""
        return {"regression": "r2", "redshift": "sigma_nmad", "classification": "balanced_accuracy"}[self.task]


UGRIZ = tuple(f"flux_{b}_sdss" for b in "ugriz")
JHK = tuple(f"flux_{b}_2mass" for b in "jhk")
XP = ("tok_xp_bp", "tok_xp_rp")
GAIA = tuple(f"tok_flux_{b}_gaia" for b in ("g", "bp", "rp"))
HSC = tuple(f"tok_mag_{b}" for b in "griz")
LEGACY = tuple(f"tok_flux_{b}" for b in ("g", "r", "i", "z", "w1", "w2"))
SHAPE = ("tok_shape_r", "tok_shape_e1", "tok_shape_e2")
IMAGES = ("tok_image",)
SPECTRA = ("tok_spectrum_desi", "tok_spectrum_sdss")
EBV = ("tok_ebv",)
GRIZ = ("flux_g_sdss", "flux_r_sdss", "flux_i_sdss", "flux_z_sdss")
REDSHIFT: dict[str, Any] = {"task": "redshift", "targets": {"redshift": ""}}
STELLAR = {"teff": "K", "logg": "dex", "fe_h": "dex"}
GALAXY = {"redshift": "", "log_mass": "dex", "log_ssfr": "dex", "age": "Gyr", "metallicity": "dex"}
SIMULATED_PHOTOMETRY = (*LEGACY, *SHAPE, *EBV)


def _galaxies(name: str, title: str, keys: tuple[str, ...]) -> Question:
    """The same galaxies, with more and more of what is known of them."""
    return Question(
        name, f"Simulated galaxies: {title}", "regression", GALAXY, "simulated_galaxies", "simulated_galaxies", keys,
        (("tok_flux_r",), IMAGES, SPECTRA), sizes=TWO,
    )  # fmt: skip


QUESTIONS: dict[str, Question] = {
    one.name: one
    for one in (
        Question("stars", "Stars: Gaia XP spectra and photometry to APOGEE's parameters", "regression",
                 STELLAR | {"alpha_m": "dex"}, "gaia_xp_wheel", "gaia_xp_apogee", (*XP, *GAIA, *JHK), (XP,),
                 keep=_cool, most=None),
        Question("photoz_ugrizJHK", "Galaxies: redshift from u g r i z J H K of SDSS and 2MASS",
                 fitted="photoz_kcorrect_gst", tested="photoz_kcorrect_gst", keys=(*UGRIZ, *JHK, *EBV),
                 needed=(UGRIZ,), beside="simulated_photoz", most=None, **REDSHIFT),
        Question("photoz_griz", "Galaxies: redshift from g r i z of SDSS", fitted="photoz_kcorrect_gst",
                 tested="photoz_kcorrect_gst", keys=(*GRIZ, *EBV), needed=(GRIZ,), sizes=TWO, most=None, **REDSHIFT),
        Question("photoz_mgs", "Galaxies: redshift from u g r i z, a community benchmark", fitted="photoz_sdss_mgs",
                 tested="photoz_sdss_mgs", keys=(*UGRIZ, *EBV), needed=(UGRIZ,), sizes=TWO, **REDSHIFT),
        Question("photoz_zcosmos", "Galaxies: redshift from g r i z of zCOSMOS", fitted="photoz_zcosmos",
                 tested="photoz_zcosmos", keys=HSC, needed=(HSC,), **REDSHIFT),
        Question("photoz_vvds", "Galaxies: redshift from g r i z of VVDS", fitted="photoz_vvds", tested="photoz_vvds",
                 keys=HSC, needed=(HSC,), sizes=TWO, **REDSHIFT),
        Question("simulated_photoz", "Simulated galaxies: redshift from u g r i z J H K", fitted="simulated_galaxies",
                 tested="simulated_galaxies", keys=(*UGRIZ, *JHK, *EBV), needed=(UGRIZ,), sizes=TWO, **REDSHIFT),
        Question("class_spectra", "Class of SDSS and BOSS spectra, learnt from simulated ones", "classification",
                 {"class": ""}, "simulated_mix", "sdss_boss_spectra", SPECTRA, (SPECTRA,), sizes=TWO,
                 keep=_sure, beside="simulated_class"),
        Question("class_all_surveys", "Class of SDSS, BOSS, DESI and LAMOST spectra, learnt from simulated ones",
                 "classification", {"class": ""}, "simulated_mix", "real_spectra", SPECTRA, (SPECTRA,), sizes=(None,),
                 keep=_sure, beside="simulated_class", window=(3850.0, 9000.0)),
        Question("simulated_class", "Class of simulated spectra", "classification", {"class": ""}, "simulated_mix",
                 "simulated_mix", SPECTRA, (SPECTRA,), sizes=TWO),
        Question("redshift_galaxies", "Redshift of galaxies' SDSS spectra, learnt from simulated ones",
                 fitted="simulated_mix", tested="sdss_boss_spectra", keys=SPECTRA, needed=(SPECTRA,), sizes=(None,),
                 keep=_sure_of_class("GALAXY"), beside="simulated_redshift", limit=1000.0, **REDSHIFT),
        Question("redshift_quasars", "Redshift of quasars' BOSS spectra, learnt from simulated ones",
                 fitted="simulated_mix", tested="sdss_boss_spectra", keys=SPECTRA, needed=(SPECTRA,), sizes=(None,),
                 keep=_sure_of_class("QSO"), beside="simulated_redshift", limit=3000.0, **REDSHIFT),
        Question("redshift_galaxies_desi", "Redshift of galaxies' DESI spectra, learnt from simulated ones",
                 fitted="simulated_mix", tested="desi_spectra", keys=SPECTRA, needed=(SPECTRA,), sizes=(None,),
                 keep=_of_class("GALAXY"), beside="simulated_redshift", limit=1000.0, **REDSHIFT),
        Question("redshift_quasars_desi", "Redshift of quasars' DESI spectra, learnt from simulated ones",
                 fitted="simulated_mix", tested="desi_spectra", keys=SPECTRA, needed=(SPECTRA,), sizes=(None,),
                 keep=_of_class("QSO"), beside="simulated_redshift", limit=3000.0, **REDSHIFT),
        Question("simulated_redshift", "Redshift of simulated galaxies and quasars from spectra",
                 fitted="simulated_mix", tested="simulated_mix", keys=SPECTRA, needed=(SPECTRA,), sizes=(None,),
                 keep=_of_class("GALAXY", "QSO"), limit=3000.0, **REDSHIFT),
        Question("lamost_stars", "Stars: LAMOST spectra, learnt from the MILES library", "regression", STELLAR,
                 "miles_stars", "lamost_spectra", SPECTRA, (SPECTRA,), sizes=TWO, window=(3750.0, 7400.0)),
        _galaxies("galaxies_photometry", "photometry", SIMULATED_PHOTOMETRY),
        _galaxies("galaxies_image", "photometry and image", (*SIMULATED_PHOTOMETRY, *IMAGES)),
        _galaxies("galaxies_spectrum", "photometry, image and spectrum", (*SIMULATED_PHOTOMETRY, *IMAGES, *SPECTRA)),
    )
}  # fmt: skip
"""Name -> question, in the order of the page."""
