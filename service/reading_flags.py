"""Reading options as text: one table for the flags of every command and the query string of every HTTP door.

Imports nothing heavy: the command line starts here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from albireo.observations.errors import BadInput
from albireo.observations.options import ReadOptions

Shape = Literal["text", "number", "count", "switch", "position", "list", "words", "pairs"]


@dataclass(frozen=True)
class Flag:
    """One row: a field of ReadOptions and how it is written.

    shape   text, number, count (1, 2, ..), switch (yes or no), position ("190.1,62.8"), list ("g,r,z"), words and pairs
            (both may be repeated)
    """

    field: str
    shape: Shape
    help: str
    metavar: str = "TEXT"
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The option of the command line."""
        return "--" + {"columns": "column", "tokens": "token"}.get(self.field, self.field).replace("_", "-")


FLAGS = (
    Flag("at", "position", "cut images here (degrees ICRS), not at their centre", "RA,DEC"),
    Flag("positions", "text", "table (id, ra, dec): one object per row, cut from the mosaic given along", "FILE"),
    Flag("resample", "switch", "allow images of another pixel scale to be resampled"),
    Flag("survey", "text", "whose data it is: legacysurvey, hsc, sdss, desi, gaia, ...", "NAME"),
    Flag("release", "text", "data release, e.g. dr10", "NAME"),
    Flag("bands", "list", "image planes in order: DES-G,DES-R or, with --survey, g,r", "B,B,.."),
    Flag("pixel_scale", "number", "arcsec per pixel", "ARCSEC"),
    Flag("unit", "text", "flux unit, e.g. nanomaggy or '1e-17 erg/(s cm2 Angstrom)'", "UNIT"),
    Flag("zero_point", "number", "AB magnitude of flux 1", "MAG"),
    Flag("medium", "text", "medium of the wavelengths", choices=("vacuum", "air")),
    Flag("frame", "text", "velocity frame of spectra", choices=("heliocentric", "barycentric", "observed", "rest")),
    Flag("system", "text", "magnitude system", choices=("AB", "Vega")),
    Flag("kind", "text", "how fluxes were measured", choices=("model", "cmodel", "psf", "aperture", "fibre")),
    Flag("extinction_corrected", "switch", "photometry is corrected for Galactic extinction, or not"),
    Flag("columns", "pairs", "our name for a column of the file (may be repeated)", "OURS=THEIRS"),
    Flag("tokens", "words", "metadata that becomes a token: redshift, ra or dec (may be repeated)", "NAME"),
    Flag("nearest", "count", "keep so many objects of a catalog, nearest to the centre (AION-1 reads 10)", "N"),
)


def read_options(texts: Mapping[str, Any]) -> ReadOptions:
    """Options from their text forms; absent or None ones stay unset. BadInput option_invalid names the option."""
    values = {}
    for flag in FLAGS:
        text = texts.get(flag.field)
        if text is None or (flag.shape in ("words", "pairs") and not text):
            continue
        values[flag.field] = _PARSE[flag.shape](flag, text)
        if flag.choices and values[flag.field] not in flag.choices:
            raise _invalid(flag, text, "one of " + ", ".join(flag.choices))
    return ReadOptions(**values)


def with_reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a typer command one option per row of FLAGS; it receives them parsed, as `reading`."""
    import typer

    added = [_parameter(typer, flag) for flag in FLAGS]
    signature = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "reading"]

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        texts = {flag.field: values.pop(flag.field) for flag in FLAGS}
        return command(**values, reading=texts)

    parameters = [*kept, *added]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _parameter(typer: Any, flag: Flag) -> inspect.Parameter:
    many = flag.shape in ("words", "pairs")
    annotation: Any = bool | None if flag.shape == "switch" else list[str] | None if many else str | None
    names = [flag.name + (f"/--no-{flag.name[2:]}" if flag.shape == "switch" else "")]
    metavar = {} if flag.shape == "switch" else {"metavar": "|".join(flag.choices) or flag.metavar}
    option = typer.Option(None, *names, help=flag.help, show_default=False, **metavar)
    return inspect.Parameter(flag.field, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _number(flag: Flag, text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise _invalid(flag, text, "a number") from None


def _count(flag: Flag, text: Any) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise _invalid(flag, text, "a whole number from 1 on")
    return int(text)


def _switch(flag: Flag, text: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if str(text).lower() not in known:
        raise _invalid(flag, text, "true or false")
    return known[str(text).lower()]


def _position(flag: Flag, text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise _invalid(flag, text, "RA,DEC in degrees, e.g. 190.045,62.883")
    return _number(flag, parts[0]), _number(flag, parts[1])


def _list(flag: Flag, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _words(flag: Flag, texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _pairs(flag: Flag, texts: str | Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in _words(flag, texts):
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise _invalid(flag, text, "OURS=THEIRS, e.g. redshift=zspec")
        pairs[ours] = theirs
    return pairs


_PARSE: Mapping[Shape, Callable[[Flag, Any], Any]] = {
    "text": lambda flag, text: str(text),
    "number": _number,
    "count": _count,
    "switch": _switch,
    "position": _position,
    "list": _list,
    "words": _words,
    "pairs": _pairs,
}


def _invalid(flag: Flag, text: Any, wanted: str) -> BadInput:
    return BadInput("option_invalid", f"{text!r} is not {wanted}", field=flag.field, fix=f"give {wanted}")
