"""The formats of spectra, in the order they are tried: surveys before tables that only look like a spectrum."""

from __future__ import annotations

from typing import Any

from albireo.observations import desi, lamost, plain_spectra, sdss

FORMATS: tuple[tuple[Any, ...], ...] = (*sdss.FORMATS, *lamost.FORMATS, *desi.FORMATS, *plain_spectra.FORMATS)
