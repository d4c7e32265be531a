"""A file as bytes: its name, its hash, its decompressed content, and cheap looks at what it is."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from albireo.observations.errors import BadInput, NotFound, TooLarge
from albireo.observations.observation import Provenance

MAX_BYTES = 512 << 20
"""Largest file, and largest decompressed content, in bytes."""


class Source:
    """One file, from disk or from a request body. Reading it never changes it.

    `name` is for messages and provenance only: formats are told by content.
    """

    def __init__(self, name: str, content: bytes, limit: int = MAX_BYTES) -> None:
        self.name = name
        self.limit = limit
        if len(content) > limit:
            raise TooLarge("too_large", f"{len(content)} bytes, the limit is {limit}", file=name)
        if not content:
            raise BadInput("empty_file", "the file has no bytes", file=name)
        self._raw = content

    @classmethod
    def from_path(cls, path: str | Path, limit: int = MAX_BYTES) -> Source:
        """The file at `path`; its size is checked before it is read."""
        path = Path(path)
        if not path.is_file():
            raise NotFound("file_not_found", "there is no such file", file=str(path))
        if path.stat().st_size > limit:
            raise TooLarge("too_large", f"{path.stat().st_size} bytes, the limit is {limit}", file=path.name)
        return cls(path.name, path.read_bytes(), limit)

    @cached_property
    def sha256(self) -> str:
        """Of the bytes as given (compressed if they were)."""
        return hashlib.sha256(self._raw).hexdigest()

    @cached_property
    def content(self) -> bytes:
        """The bytes, gunzipped if they were gzipped, never more than `limit`."""
        if self._raw[:2] != b"\x1f\x8b":
            return self._raw
        try:
            with gzip.open(io.BytesIO(self._raw)) as stream:
                out = stream.read(self.limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput("damaged_file", f"gzip: {error}", file=self.name, fix="fetch the file again") from error
        if len(out) > self.limit:
            raise TooLarge("too_large", f"more than {self.limit} bytes when decompressed", file=self.name)
        return out

    @property
    def is_fits(self) -> bool:
        return self.content[:9] == b"SIMPLE  ="

    @contextmanager
    def fits(self) -> Iterator[fits.HDUList]:
        """The file opened with astropy; damage becomes a typed error naming the file."""
        try:
            with fits.open(io.BytesIO(self.content), memmap=False, lazy_load_hdus=False) as hdus:
                yield hdus
        except BadInput as error:
            raise error.at(file=self.name) from error.__cause__
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, VerifyError) as error:
            raise BadInput("damaged_file", f"FITS: {error}", file=self.name, fix="fetch the file again") from error

    def text(self) -> str:
        """The content as UTF-8 text."""
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput("damaged_file", f"not text: {error}", file=self.name) from error

    def provenance(
        self,
        format: str,
        *,
        survey: str | None = None,
        release: str | None = None,
        hdu: str | None = None,
        row: int | None = None,
    ) -> Provenance:
        """Where a measurement of this file came from."""
        return Provenance(format, survey, release, self.name, self.sha256, hdu, row)
