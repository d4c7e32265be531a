"""Pieces as requests, each under the limits of the server: what belongs together stays together, and order is kept.

Limits   of the server
Batch    the pieces of one request
batches  pieces in batches
parted   a batch that was refused, in batches that may not be
loaded   a batch with the bytes of its files, ready to be sent; what cannot be read is set apart
Request  what is sent
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from albireo.observations.errors import AlbireoError, BadInput, Late, TooLarge, Unavailable
from albireo.service.client_inputs import File, Piece, json_text

BATCH_BYTES = 8 << 20
BATCH_OBJECTS = 1000
"""Aimed at in one request, where the server allows as many: so much is answered soon, and told in a progress bar."""

PARTNERS = frozenset({"snana_phot", "desi_redrock", "plasticc_metadata", "desi"})
"""Formats of files that may complete another."""

Form = Literal["files", "items", "error"]
Contents = Mapping[int, bytes]
"""id() of a File -> its bytes."""


@dataclass(frozen=True)
class Limits:
    """Of the server: bytes of a body, objects of a request."""

    max_body_bytes: int = 256 << 20
    max_items: int = 10_000

    @property
    def bytes(self) -> int:
        """Of files that a batch shall have at most; the rest of a body needs some room."""
        return min(BATCH_BYTES, self.max_body_bytes * 3 // 4)

    @property
    def objects(self) -> int:
        return min(BATCH_OBJECTS, self.max_items)

    def check(self, request: Request) -> None:
        """TooLarge for a request that the server would refuse; it need not be sent to know."""
        size = sum(len(content) for _, _, content in request.files)
        if size > self.max_body_bytes:
            raise TooLarge(
                "too_large", f"{size} bytes in one request, the limit is {self.max_body_bytes}", field="body",
                fix="part the file (a table is parted by the client: give it as a Table), or raise "
                "ALBIREO_MAX_BODY_BYTES of the server",
            )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Of one request. A group is never parted: a file and those that complete it."""

    groups: tuple[tuple[Piece, ...], ...]

    @property
    def pieces(self) -> list[Piece]:
        """Every piece once, also one that completes several others."""
        return list({id(piece): piece for piece in chain.from_iterable(self.groups)}.values())

    @property
    def form(self) -> Form:
        return _form(self.groups[0])

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    @property
    def n(self) -> int:
        return sum(piece.n for piece in self.pieces)

    def halves(self) -> tuple[Batch, ...]:
        """Two batches of about as many groups, or of one table in two; one where nothing can be parted."""
        middle = len(self.groups) // 2
        if middle:
            return Batch(self.groups[:middle]), Batch(self.groups[middle:])
        first = self.groups[0][0]
        found = first.halves() if first.halves is not None and len(self.groups[0]) == 1 else ()
        return tuple(Batch(((piece,),)) for piece in found) if len(found) > 1 else (self,)

    def failed(self, error: AlbireoError) -> Batch:
        """The same pieces, with the reason why they go no further."""
        return Batch(tuple(tuple(replace(piece, error=error) for piece in group) for group in self.groups))


@dataclass(frozen=True)
class Request:
    """What is sent: `files` are the parts (field, file name, bytes) of a multipart form whose `request` is `json`."""

    method: Literal["GET", "POST", "PUT"]
    path: str
    json: Mapping[str, Any] | None = None
    files: tuple[tuple[str, str, bytes], ...] = ()

    def arguments(self) -> dict[str, Any]:
        """The body as httpx takes it."""
        if self.files:
            parts = [(name, (filename, content)) for name, filename, content in self.files]
            return {"data": {"request": json_text(self.json)}, "files": parts}
        if self.json is None:
            return {}
        return {"content": json_text(self.json).encode(), "headers": {"Content-Type": "application/json"}}


def batches(pieces: Sequence[Piece], limits: Limits, together: bool) -> list[Batch]:
    """The pieces in batches. `together` keeps all in one request: ids or positions of one file concern the others."""
    whole = Batch(tuple((piece,) for piece in pieces))
    forms = {_form(group) for group in whole.groups}
    if len(forms) == 1 and (together or (whole.size <= limits.bytes and whole.n <= limits.objects)):
        return [whole]
    if together:
        raise BadInput(
            "request_invalid", "files and dicts of modalities, and one request must hold them all", field="input",
            fix="give files only, or dicts only",
        )  # fmt: skip
    out: list[Batch] = []
    groups: list[tuple[Piece, ...]] = []
    size = n = 0
    for group in _companions(pieces):
        more, objects = sum(piece.size for piece in group), sum(piece.n for piece in group)
        full = size + more > limits.bytes or n + objects > limits.objects
        if groups and (full or _form(group) != _form(groups[0])):
            out.append(Batch(tuple(groups)))
            groups, size, n = [], 0, 0
        groups.append(group)
        size, n = size + more, n + objects
    return [*out, Batch(tuple(groups))]


def _form(group: Sequence[Piece]) -> Form:
    if any(piece.error is not None for piece in group):
        return "error"
    return "files" if group[0].item is None else "items"


def parted(batch: Batch, error: AlbireoError) -> list[Batch]:
    """What to send instead of a batch that was refused: without the item that is wrong, or half as much.

    One batch whose pieces failed if there is nothing to part; [] for an error that has nothing to do with a batch.
    """
    wrong = re.match(r"items\.(\d+)\b", error.field or "")
    if wrong and batch.form == "items" and isinstance(error, BadInput):
        at = int(wrong[1])
        error.field = (error.field or "")[wrong.end() :].lstrip(".") or None
        around = [
            Batch(batch.groups[:at]),
            Batch(batch.groups[at : at + 1]).failed(error),
            Batch(batch.groups[at + 1 :]),
        ]
        return [part for part in around if part.groups]
    if isinstance(error, TooLarge | Late):
        halves = batch.halves()
        if len(halves) > 1:
            return list(halves)
        if isinstance(error, TooLarge) and batch.pieces[0].halves is not None:
            error.fix = "give each row the id of its object: the table can be parted by it"
        return [batch.failed(error)]
    return [batch.failed(error)] if isinstance(error, Unavailable) else []


def loaded(batch: Batch) -> Iterator[tuple[Batch, Contents]]:
    """The batch with the bytes of its files; around groups that cannot be read it is parted."""
    if batch.form == "error":
        yield batch, {}
        return
    contents: dict[int, bytes] = {}
    ready: list[tuple[Piece, ...]] = []
    for group in batch.groups:
        try:
            for file in chain.from_iterable(piece.files for piece in group):
                if id(file) not in contents:
                    contents[id(file)] = _read(file)
            ready.append(group)
        except AlbireoError as error:
            if ready:
                yield Batch(tuple(ready)), contents
            yield Batch((group,)).failed(error.at(file=group[0].name)), {}
            contents, ready = {}, []
    if ready:
        yield Batch(tuple(ready)), contents


def _read(file: File) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise BadInput(
            "storage_unavailable", str(error), file=file.name, fix="see that the file can be read"
        ) from error


def request_of(batch: Batch, contents: Contents, path: str, body: Mapping[str, Any]) -> Request:
    """The request of a batch; `body` is what its JSON part says beside the items."""
    files: list[tuple[str, str, bytes]] = []
    if batch.form == "files":
        files = [("file", file.name, contents[id(file)]) for piece in batch.pieces for file in piece.files]
        return Request("POST", path, body, tuple(files))
    items = []
    for piece in batch.pieces:
        assert piece.item is not None
        inputs = [_referred(given, len(files)) for given in piece.item["inputs"]]
        items.append({**piece.item, "inputs": inputs})
        files += [(f"input#{len(files) + k}", file.name, contents[id(file)]) for k, file in enumerate(piece.files)]
    return Request("POST", path, {**body, "items": items}, tuple(files))


def _referred(given: Mapping[str, Any], first: int) -> dict[str, Any]:
    """An input with the name of its part; `ref` was a number among the files of its piece."""
    return {**given, "ref": f"part:input#{first + given['ref']}"} if isinstance(given.get("ref"), int) else dict(given)


def _companions(pieces: Sequence[Piece]) -> Iterable[tuple[Piece, ...]]:
    """Each piece, with those that complete it: they are told by content, among the files of one folder."""
    folders: dict[Path, list[int]] = {}
    for i, piece in enumerate(pieces):
        folder = piece.files[0].folder if piece.error is None and piece.item is None else None
        if folder is not None:
            folders.setdefault(folder, []).append(i)
    partners: dict[int, list[int]] = {}
    for members in folders.values():
        partners |= _partners(pieces, members)
    moved = {j for found in partners.values() for j in found}
    for i, piece in enumerate(pieces):
        if i not in moved:
            yield (piece, *(pieces[j] for j in partners.get(i, ())))


def _partners(pieces: Sequence[Piece], members: Sequence[int]) -> dict[int, list[int]]:
    """Which files of a folder complete which; only few are in memory at a time."""
    from albireo.observations.options import ReadOptions  # readers are loaded for many files only
    from albireo.observations.reading import Format, detect
    from albireo.observations.source import Source

    def opened(i: int) -> Source:
        file = pieces[i].files[0]
        return Source(file.name, _read(file))

    forms: dict[int, Format] = {}
    for i in members:
        try:
            forms[i] = detect(opened(i))
        except AlbireoError:
            continue  # whatever it is, the server says it
    owners = [i for i, form in forms.items() if form.completes is not Format.completes]
    others = {j: opened(j) for j in members if j in forms and forms[j].name in PARTNERS} if owners else {}
    out: dict[int, list[int]] = {}
    for i in owners if others else ():
        source = opened(i)
        out[i] = [j for j, other in others.items() if j != i and forms[i].completes(source, other, ReadOptions())]
    return out
