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
from albireo.observations.fits_bounds import FITS_DAMAGE, open_checked
from albireo.observations.observation import Provenance
from albireo.observations.room import Room, current_room

MAX_BYTES = 512 << 20
"""Largest file, and largest decompressed content, in bytes."""


OBJECT_BYTES = 1500
"""Of memory that an object takes, beside arrays: an observation with a number or two and where they came from."""


class Source:
    """One file, from disk or from a request body. Reading it never changes it.

    `name` is for messages and provenance only: formats are told by content.
    `room` is what all files of a request may unfold to together; outside of one, each has its own `limit` only.
    `first_row` is not 0 if the content is some rows of a larger table (row_spans.py): which row of it comes first.
    """

    first_row: int = 0

    def __init__(self, name: str, content: bytes, limit: int = MAX_BYTES, room: Room | None = None) -> None:
        self.name = name
        self.limit = limit
        self.room = room or current_room()
        self._unfolded: dict[str, int] = {}
        self._checked = False
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

    def unfold(self, n: int, what: str = "content") -> None:
        """Say, before memory is taken, that `what` of this file takes `n` bytes of it; saying it again takes no more.

        TooLarge over the file's limit, or if there is no room left.
        """
        if n > self.limit:
            raise TooLarge("too_large", f"{n} bytes when decompressed, the limit is {self.limit}", file=self.name)
        more = n - self._unfolded.get(what, 0)
        if more > 0:
            if self.room is not None:
                self.room.take(more, self.name)
            self._unfolded[what] = n

    def make(self, n: int, each: int = OBJECT_BYTES) -> None:
        """Say, before they are made, that `n` objects are made of this file, of so many bytes each.

        A row of a few bytes is an object of a thousand. TooLarge if the room of the request has not so much left; a
        file without a request may hold as many as one likes.
        """
        if self.room is not None:
            more = n * each - self._unfolded.get("objects", 0)
            if more > 0:
                self.room.take(more, self.name)
                self._unfolded["objects"] = n * each

    @cached_property
    def content(self) -> bytes:
        """The bytes, gunzipped if they were gzipped, never more than `limit`."""
        if self._raw[:2] != b"\x1f\x8b":
            return self._raw
        most = self.limit if self.room is None else min(self.limit, self.room.left)
        try:
            with gzip.open(io.BytesIO(self._raw)) as stream:
                out = stream.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput("damaged_file", f"gzip: {error}", file=self.name, fix="fetch the file again") from error
        if len(out) > self.limit:
            raise TooLarge("too_large", f"more than {self.limit} bytes when decompressed", file=self.name)
        self.unfold(len(out), "gzip")
        return out

    @property
    def is_fits(self) -> bool:
        return self.content[:9] == b"SIMPLE  ="

    @contextmanager
    def fits(self) -> Iterator[fits.HDUList]:
        """The file opened with astropy; damage becomes a typed error naming the file."""
        try:
            if self._checked:
                opened = fits.open(io.BytesIO(self.content), memmap=False, lazy_load_hdus=False)
            else:
                opened = open_checked(self)
            with opened as hdus:
                self._checked = True
                yield hdus
        except BadInput as error:
            raise error.at(file=self.name) from error.__cause__
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, VerifyError,
                OverflowError, RuntimeError, *FITS_DAMAGE) as error:  # fmt: skip
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
        place = None if row is None else self.first_row + row
        return Provenance(format, survey, release, self.name, self.sha256, hdu, place)
