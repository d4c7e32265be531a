"""FITS images of the sky: cubes [band, y, x], one HDU per band, single bands; JPEG and PNG are named and refused.

What a file must say, in its cards or through `ReadOptions`, and where it is looked for:

    survey       SURVEY, INSTRUME, TELESCOP, ORIGIN, LEGPIPEV, or full band names ("HSC-G")
    bands        BANDS, BAND0.., FILTER0.., FILTER, BAND, or EXTNAME of one HDU per band
    pixel scale  the WCS, PIXSCALE
    flux unit    BUNIT, MAGZERO, MAGZPT, ZP, FLUXMAG0; a cutout of the Legacy Surveys' viewer is in nanomaggies
    noise, mask  HDUs named INVVAR, VARIANCE, ERROR, MASK, MASKBITS, DQ (EXTNAME or IMAGETYP)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from astropy.io import fits

from albireo.observations.cutouts import check_scale, observe
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.image_cards import build_scene
from albireo.observations.image_hdus import is_spectral, load_hdus
from albireo.observations.modalities import IMAGE_SIZE
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.positions import Position, of_row, read_positions
from albireo.observations.source import OBJECT_BYTES, Source

ID_CARDS = ("OBJID", "TARGETID", "ID", "OBJECT")


def sniff_fits_image(source: Source) -> bool:
    """True if an HDU holds pixels with two sky axes; spectra stored as images and files of tables only are not."""
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        images = [hdu for hdu in hdus if hdu.is_image]
        if any(is_spectral(hdu.header) for hdu in images):
            return False
        return any(len(hdu.shape) in (2, 3, 4) and min(hdu.shape[-2:]) >= 2 for hdu in images)


def read_fits_image(
    source: Source, options: ReadOptions, companions: Sequence[Source]
) -> list[Observation | AlbireoError]:
    """One object: the box at the centre or at `options.at`; or one per row of the table `options.positions`."""
    primary, hdus = load_hdus(source)
    scene, flux = build_scene(primary, hdus, options)
    names = ",".join(str(number) for number in dict.fromkeys(hdu.number for hdu in flux))
    metadata: dict[str, Any] = {"wcs": scene.wcs is not None}
    unused = [hdu.label for hdu in hdus if hdu.role == "other"]
    if unused:
        metadata["ignored_hdus"] = tuple(unused)

    def one(id: str, at: tuple[float, float] | None, row: int | None, extra: dict[str, Any]) -> Observation:
        return observe(
            scene,
            id=id,
            at=at,
            resample=options.resample,
            provenance=source.provenance(
                "fits_image", survey=scene.row.survey, release=scene.release, hdu=names, row=row
            ),
            metadata=metadata | extra,
            position=_card_position(primary, flux[0].header),
        )

    if options.positions is None:
        name, origin = _identity(primary, flux[0].header, source.name)
        return [one(name, options.at, None, {"id_from": origin})]
    check_scale(scene, options.resample)
    positions = _positions(options, companions)
    source.make(len(positions), OBJECT_BYTES + 9 * len(scene.planes) * IMAGE_SIZE**2)  # flux, ivar and mask
    items: list[Observation | AlbireoError] = []
    for position in positions:
        if isinstance(position, AlbireoError):
            items.append(position)
            continue
        try:
            extra = {"id_from": options.positions}
            items.append(one(position.id, (position.ra, position.dec), position.row, extra))
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"{options.positions} row {position.row}"))
    return items


def completes(source: Source, other: Source, options: ReadOptions) -> bool:
    """True if `other` is the table of positions that the options name."""
    return options.positions is not None and other.name == options.positions and source.name != other.name


def _identity(primary: fits.Header, header: fits.Header, name: str) -> tuple[str, str]:
    """(id, where it is from): the first id card that is not empty, else the file name without its endings."""
    for card in ID_CARDS:
        for head in (header, primary):
            if text := str(head.get(card, "")).strip():
                return text, card
    return PurePath(name).name.split(".fits")[0].split(".fit")[0], "file name"


def _card_position(primary: fits.Header, header: fits.Header) -> tuple[float, float] | None:
    """RA and DEC cards if they are numbers, that is degrees; texts may be hours and are left to the WCS."""
    for head in (header, primary):
        ra, dec = head.get("RA"), head.get("DEC")
        if isinstance(ra, (int, float)) and isinstance(dec, (int, float)) and 0 <= ra <= 360 and -90 <= dec <= 90:
            return float(ra), float(dec)
    return None


def _positions(options: ReadOptions, companions: Sequence[Source]) -> list[Position | AlbireoError]:
    if options.at is not None:
        raise BadInput("option_invalid", "both at and positions are given", field="at", fix="give one of them")
    table = next((other for other in companions if other.name == options.positions), None)
    if table is None:
        raise BadInput(
            "companion_missing",
            f"the table of positions {options.positions!r} is not among the files",
            field="positions",
            fix="give the table along with the image",
        )
    return read_positions(table, options)


def sniff_jpeg(source: Source) -> bool:
    return source.content[:3] == b"\xff\xd8\xff"


def sniff_png(source: Source) -> bool:
    return source.content[:8] == b"\x89PNG\r\n\x1a\n"


def refuse_picture(
    source: Source, options: ReadOptions, companions: Sequence[Source]
) -> list[Observation | AlbireoError]:
    """Display pictures are recognised, and refused."""
    raise BadInput(
        "not_photometric",
        "a display picture: its pixels are stretched, clipped colours, not fluxes",
        file=source.name,
        fix="fetch the FITS cutout of the same position from the survey",
    )


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("jpeg", "JPEG picture (recognised, refused: not photometric)", sniff_jpeg, refuse_picture),
    ("png", "PNG picture (recognised, refused: not photometric)", sniff_png, refuse_picture),
    ("fits_image", "FITS image: cube, one HDU per band, or one band", sniff_fits_image, read_fits_image, completes),
)
