"""Observations written as surveys write their files, so that what reads real files can be tried on known truth.

    write_cutout      image cube [band, y, x] with BANDS, world coordinates, unit and zero point
    write_sdss        spec-*.fits: COADD table, SPECOBJ row
    write_desi        coadd-*.fits: cameras B, R and Z that overlap, several targets
    write_redrock     the redshifts that belong to a DESI coadd
    write_photometry  table with the columns of the Legacy Surveys, HSC and Gaia (ECSV or CSV)
    write_samples     the small set of files that the demo reads

A name that ends in .gz is compressed. The same observations give the same bytes: no file holds a date.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.observations.modalities import LABEL_KEYS, MODALITIES
from albireo.observations.observation import Image, Observation, Payload, Scalar, Spectrum
from albireo.observations.sky import RESOLUTION, simulate

CAMERAS = {"B": slice(0, 2751), "R": slice(2700, 5026), "Z": slice(4900, 7781)}
"""Pixels of the DESI grid 3600 + 0.8 k Angstrom that each camera sees; neighbours share 51 and 126."""
DESI_BAD = 2
"""ALLBADPIX of desispec's specmask."""
SDSS_BAD = 1 << 18
"""FULLREJECT of SPPIXMASK."""
SIMULATED = ("SIMULATE", True, "simulated sky, not an observation")

P = TypeVar("P", bound=Payload)


def _payload(observation: Observation, key: str, kind: type[P]) -> P:
    payload = observation.data.get(key)
    if not isinstance(payload, kind):
        raise BadInput(
            "value_missing", f"object {observation.id!r} has no {MODALITIES[key].name}", field=key, fix="leave it out"
        )
    return payload


def _save(content: bytes, path: str | Path) -> None:
    """Write bytes, compressed if the name ends in .gz."""
    path = Path(path)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _save_fits(hdus: Sequence[fits.PrimaryHDU | fits.ImageHDU | fits.BinTableHDU], path: str | Path) -> None:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    _save(stream.getvalue(), path)


def write_cutout(observation: Observation, path: str | Path, key: str = "tok_image") -> None:
    """The image of one object as a FITS cube, north up and east left, the object's position at the centre.

    Bad pixels are NaN; an ivar becomes an extension INVVAR. Raises value_missing without the image or a position.
    """
    image = _payload(observation, key, Image)
    if observation.ra is None or observation.dec is None:
        raise BadInput("value_missing", f"object {observation.id!r} has no position", field="ra", fix="give ra and dec")
    survey = MODALITIES[key].survey
    primary = fits.PrimaryHDU(np.where(image.mask, np.float32(np.nan), image.flux))
    letters = "".join(band[-1].lower() for band in image.bands)
    cards: list[tuple[str, object] | tuple[str, object, str]] = [
        ("OBJID", observation.id, "object"),
        ("SURVEY", {"legacysurvey": "LegacySurvey", "hsc": "HSC"}[survey], "whose bands and pixels these are"),
        ("VERSION", "simulated"),
        SIMULATED,
        ("IMAGETYP", "image"),
        ("BANDS", letters, "planes, in order"),
        *((f"BAND{i}", letter) for i, letter in enumerate(letters)),
        ("MAGZERO", image.zero_point, "AB magnitude of flux 1"),
        *_wcs_cards(observation.ra, observation.dec, image.pixel_scale, image.flux.shape[2], image.flux.shape[1]),
    ]
    if survey == "hsc":
        cards.append(("FLUXMAG0", 10 ** (0.4 * image.zero_point), "flux of AB magnitude 0"))
    else:
        cards.append(("BUNIT", "nanomaggy"))
    primary.header.extend(cards)
    hdus: list[fits.PrimaryHDU | fits.ImageHDU] = [primary]
    if image.ivar is not None:
        hdus.append(fits.ImageHDU(image.ivar, name="INVVAR"))
    _save_fits(hdus, path)


def _wcs_cards(ra: float, dec: float, scale: float, width: int, height: int) -> list[tuple[str, object, str]]:
    return [
        ("CTYPE1", "RA---TAN", ""),
        ("CTYPE2", "DEC--TAN", ""),
        ("CUNIT1", "deg", ""),
        ("CUNIT2", "deg", ""),
        ("CRVAL1", ra, "right ascension of the centre"),
        ("CRVAL2", dec, "declination of the centre"),
        ("CRPIX1", (width + 1) / 2, "pixels count from 1"),
        ("CRPIX2", (height + 1) / 2, ""),
        ("CD1_1", -scale / 3600, "east is left"),
        ("CD1_2", 0.0, ""),
        ("CD2_1", 0.0, ""),
        ("CD2_2", scale / 3600, "north is up"),
        ("RADESYS", "ICRS", ""),
    ]


def write_sdss(observation: Observation, path: str | Path) -> None:
    """The SDSS spectrum of one object in the layout of spec-*.fits: log10 of vacuum Angstrom, and_mask, SPECOBJ.

    The id is SPECOBJID, a string there as in SDSS. Columns that SDSS has and a simulation does not (sky, model)
    are left out. Raises value_missing without the spectrum.
    """
    spectrum = _payload(observation, "tok_spectrum_sdss", Spectrum)
    loglam = np.log10(spectrum.wavelength)
    bad = np.where(spectrum.mask, SDSS_BAD, 0).astype(np.int32)
    step = float(np.median(np.diff(loglam)))
    coadd = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=spectrum.flux),
            fits.Column("loglam", "E", array=loglam),
            fits.Column("ivar", "E", array=spectrum.ivar),
            fits.Column("and_mask", "J", array=bad),
            fits.Column("or_mask", "J", array=bad),
            # Dispersion in pixels; a pixel is a constant velocity, and so is the simulated resolution.
            fits.Column("wdisp", "E", array=np.full(len(loglam), 1 / (2.355 * RESOLUTION) / (step * np.log(10)))),
        ],
        name="COADD",
    )
    truth = observation.metadata
    ra, dec = _position(observation)
    specobj = fits.BinTableHDU.from_columns(
        [
            fits.Column("SURVEY", "6A", array=["sdss"]),
            fits.Column("SPECOBJID", "22A", array=[observation.id]),
            fits.Column("PLUG_RA", "D", array=[ra]),
            fits.Column("PLUG_DEC", "D", array=[dec]),
            fits.Column("CLASS", "6A", array=[str(truth.get("class", ""))]),
            fits.Column("SUBCLASS", "21A", array=[str(truth.get("subclass", ""))]),
            fits.Column("Z", "E", array=[truth.get("redshift", np.nan)]),
            fits.Column("ZWARNING", "J", array=[0]),
        ],
        name="SPECOBJ",
    )
    primary = fits.PrimaryHDU()
    primary.header.extend(
        [
            ("TELESCOP", "SDSS 2.5-M", "whose layout this is"),
            SIMULATED,
            ("PLUG_RA", ra, "deg"),
            ("PLUG_DEC", dec, "deg"),
            ("SPEC_ID", observation.id, "object"),
            ("VACUUM", True, "wavelengths are in vacuum"),
            ("HELIO_RV", 0.0, "heliocentric correction applied, km/s"),
            ("COEFF0", float(loglam[0]), "log10 of the first wavelength"),
            ("COEFF1", step, "log10 step"),
            ("BUNIT", "1E-17 erg/cm^2/s/Ang"),
        ]
    )
    _save_fits([primary, coadd, specobj], path)


def _position(observation: Observation) -> tuple[float, float]:
    if observation.ra is None or observation.dec is None:
        return float("nan"), float("nan")
    return observation.ra, observation.dec


def _target_ids(observations: Sequence[Observation]) -> NDArray[np.int64]:
    for observation in observations:
        if not (
            observation.id.isdecimal() and int(observation.id) < 2**63 and str(int(observation.id)) == observation.id
        ):
            raise BadInput(
                "value_out_of_range",
                f"object {observation.id!r}: a TARGETID is an integer of 64 bits",
                field="TARGETID",
                fix="give the objects decimal numbers as ids",
            )
    return np.array([int(observation.id) for observation in observations], np.int64)


def write_desi(observations: Sequence[Observation], path: str | Path) -> None:
    """DESI spectra of several objects as one coadd-*.fits: FIBERMAP, and flux, ivar and mask by camera.

    Where two cameras overlap each has half the ivar, and its flux is off by one sigma of the coadd, up in one and
    down in the other: only their weighted mean is the spectrum. Ids must be decimal numbers, as TARGETID is.
    The RESOLUTION matrices are left out. Raises value_missing, shape_mismatch, value_out_of_range.
    """
    spectra = [_payload(observation, "tok_spectrum_desi", Spectrum) for observation in observations]
    grid = spectra[0].wavelength
    for observation, spectrum in zip(observations, spectra, strict=True):
        if len(grid) != CAMERAS["Z"].stop or not np.array_equal(spectrum.wavelength, grid):
            raise BadInput(
                "shape_mismatch",
                f"the spectrum of {observation.id!r} has {len(spectrum.wavelength)} pixels",
                field="tok_spectrum_desi",
                fix=f"give spectra on the common grid of {CAMERAS['Z'].stop} pixels",
            )
    flux = np.stack([spectrum.flux for spectrum in spectra]).astype(np.float64)
    ivar = np.stack([spectrum.ivar for spectrum in spectra]).astype(np.float64)
    mask = np.stack([spectrum.mask for spectrum in spectra])
    sigma = np.where(ivar > 0, 1 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), 0.0)
    seen = np.zeros(len(grid), np.int64)
    for pixels in CAMERAS.values():
        seen[pixels] += 1
    primary = fits.PrimaryHDU()
    primary.header.extend([("SURVEY", "main"), ("PROGRAM", "dark"), SIMULATED])
    hdus: list[fits.PrimaryHDU | fits.ImageHDU | fits.BinTableHDU] = [primary, _fibermap(observations)]
    sign = {"B": 1.0, "R": -1.0, "Z": 1.0}
    for camera, pixels in CAMERAS.items():
        offset = np.where(seen[pixels] == 2, sign[camera] * sigma[:, pixels], 0.0)
        bits = np.where(mask[:, pixels], DESI_BAD, 0).astype(np.uint32)
        for name, values, unit in (
            ("WAVELENGTH", grid[pixels], "Angstrom"),
            ("FLUX", (flux[:, pixels] + offset).astype(np.float32), "10**-17 erg/(s cm2 Angstrom)"),
            ("IVAR", (ivar[:, pixels] / seen[pixels]).astype(np.float32), "10**+34 (s2 cm4 Angstrom2) / erg2"),
            ("MASK", bits, None),
        ):
            hdu = fits.ImageHDU(values, name=f"{camera}_{name}")
            if unit:
                hdu.header["BUNIT"] = unit
            hdus.append(hdu)
    _save_fits(hdus, path)


def _fibermap(observations: Sequence[Observation]) -> fits.BinTableHDU:
    n = len(observations)
    positions = np.array([_position(observation) for observation in observations])
    return fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=_target_ids(observations)),
            fits.Column("PETAL_LOC", "I", array=np.zeros(n)),
            fits.Column("FIBER", "J", array=np.arange(n)),
            fits.Column("COADD_FIBERSTATUS", "J", array=np.zeros(n)),
            fits.Column("TARGET_RA", "D", array=positions[:, 0], unit="deg"),
            fits.Column("TARGET_DEC", "D", array=positions[:, 1], unit="deg"),
            fits.Column("OBJTYPE", "3A", array=["TGT"] * n),
        ],
        name="FIBERMAP",
    )


def write_redrock(observations: Sequence[Observation], path: str | Path) -> None:
    """Redshift and class of the objects as a redrock file, by TARGETID."""
    n = len(observations)
    truth = [observation.metadata for observation in observations]
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=_target_ids(observations)),
            fits.Column("Z", "D", array=[row.get("redshift", np.nan) for row in truth]),
            fits.Column("ZERR", "D", array=np.zeros(n)),
            fits.Column("ZWARN", "K", array=np.zeros(n)),
            fits.Column("SPECTYPE", "6A", array=[str(row.get("class", "")) for row in truth]),
            fits.Column("SUBTYPE", "20A", array=[str(row.get("subclass", "")) for row in truth]),
        ],
        name="REDSHIFTS",
    )
    primary = fits.PrimaryHDU()
    primary.header.append(SIMULATED)
    _save_fits([primary, table], path)


def write_photometry(observations: Sequence[Observation], path: str | Path) -> None:
    """Scalars of the objects as a table: .ecsv with units and the survey, .csv with neither.

    Columns: id, ra, dec, then the surveys' own names (FLUX_G with FLUX_IVAR_G, SHAPE_R, EBV, g_cmodel_mag,
    phot_g_mean_flux, parallax) as far as any object has them, then the labels redshift, class, subclass.
    A value that an object lacks is empty.
    """
    path = Path(path)
    formats = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv"}
    if path.suffix not in formats:
        raise BadInput("option_invalid", f"name {path.name!r}", field="path", fix="end the name in .ecsv or .csv")
    positions = [_position(observation) for observation in observations]
    columns: list[Column | MaskedColumn] = [
        Column([observation.id for observation in observations], "id", dtype=str),
        Column([ra for ra, _ in positions], "ra", unit="deg"),
        Column([dec for _, dec in positions], "dec", unit="deg"),
    ]
    for key, row in MODALITIES.items():
        if row.kind == "scalar" and key not in LABEL_KEYS:
            columns += _scalar_columns(key, [observation.data.get(key) for observation in observations])
    for label, dtype in (("redshift", float), ("class", str), ("subclass", str)):
        values = [observation.metadata.get(label) for observation in observations]
        blank = [value is None for value in values]
        filled = [dtype() if value is None else value for value in values]
        columns.append(MaskedColumn(filled, label, mask=blank, dtype=dtype))
    stream = io.StringIO()
    table = Table(columns, meta={"survey": "legacysurvey", "comment": "simulated sky, not an observation"})
    table.write(stream, format=formats[path.suffix])
    _save(stream.getvalue().encode("utf-8"), path)


def _scalar_columns(key: str, payloads: Sequence[Payload | None]) -> list[MaskedColumn]:
    """The column of a scalar, and that of its error if any object states one; none if no object has it."""
    row = MODALITIES[key]
    scalars = [payload if isinstance(payload, Scalar) else None for payload in payloads]
    if not any(scalar is not None for scalar in scalars):
        return []
    blank = [scalar is None for scalar in scalars]
    values = [0.0 if scalar is None else scalar.value for scalar in scalars]
    columns = [MaskedColumn(values, row.codec, mask=blank, unit=row.unit or None)]
    errors = [None if scalar is None else scalar.error for scalar in scalars]
    if any(error is not None for error in errors):
        # The Legacy Surveys give inverse variances, HSC and Gaia errors.
        inverse = row.codec.startswith("FLUX_")
        name = (
            row.codec.replace("FLUX_", "FLUX_IVAR_")
            if inverse
            else f"{row.codec}{'err' if row.survey == 'hsc' else '_error'}"
        )
        unit = f"1 / {row.unit}2" if inverse else row.unit
        noise = [0.0 if error is None else error**-2 if inverse else error for error in errors]
        columns.append(MaskedColumn(noise, name, mask=[error is None for error in errors], unit=unit))
    return columns


SAMPLE_CLASSES = ("GALAXY", "GALAXY", "STAR", "QSO")
"""Classes of the sample objects, over and over."""
SAMPLE_FLUX = 6.0
"""Least r flux of a sample object in nanomaggy (20.6 mag): a demo shows what can be seen."""
FIRST_SAMPLE_ID = 39627600000000001
"""Sample ids are decimal numbers beyond 2^53, as TARGETIDs are."""


def sample_objects(seed: int) -> list[Observation]:
    """16 bright objects of every class with both spectra, ids from FIRST_SAMPLE_ID on."""
    found: list[Observation] = []
    for observation in simulate(4000, np.random.default_rng(seed)):
        flux = _payload(observation, "tok_flux_r", Scalar).value
        spectra = {"tok_spectrum_desi", "tok_spectrum_sdss"} <= observation.data.keys()
        wanted = SAMPLE_CLASSES[len(found) % len(SAMPLE_CLASSES)]
        if spectra and flux > SAMPLE_FLUX and observation.metadata["class"] == wanted:
            found.append(replace(observation, id=str(FIRST_SAMPLE_ID + len(found))))
        if len(found) == 16:
            return found
    raise AssertionError("4000 objects hold 16 samples")


def write_samples(folder: str | Path, seed: int) -> None:
    """The demo's files: 16 objects in one table, images of 0-7, SDSS spectra of 0-3, 8, 9, DESI of 4-7, 10, 11."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    objects = sample_objects(seed)
    for observation in objects[:8]:
        write_cutout(observation, folder / f"cutout-{observation.id}.fits.gz")
    for observation in (*objects[:4], *objects[8:10]):
        write_sdss(observation, folder / f"spec-{observation.id}.fits.gz")
    targets = [*objects[4:8], *objects[10:12]]
    write_desi(targets, folder / "coadd-simulated.fits.gz")
    write_redrock(targets, folder / "redrock-simulated.fits.gz")
    write_photometry(objects, folder / "photometry.ecsv")
