"""Changes of files that keep most of what a reader looks at first: at random, and by what the bytes are.

    Mutator     changes inputs by a generator of random numbers, with the words and pieces of all seeds at hand
    changes_of  the changes that keep the form of some bytes

The same generator, the same seeds: the same inputs.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz import mutation_containers as containers
from tests.fuzz import mutation_formats as formats

LARGEST = 2 << 20
"""Bytes of a part of an input, at most."""

UNFOLDED = 4 << 20
"""Bytes that a gzipped part is unfolded to for a change inside, at most; larger ones are changed as they are."""

WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_.-]{2,30}")

Parts = tuple[bytes, ...]
"""An input: what a reader is given together, the options of the readers of files first."""


class Mutator:
    """Changes inputs. `seeds` are where words and pieces come from."""

    def __init__(self, seeds: Sequence[Parts]) -> None:
        contents = [_plain(part)[: 1 << 16] for parts in seeds for part in parts]
        words = {word for content in contents for word in WORD.findall(content)}
        self.words = sorted(words)[:2000] or [b"x"]
        self.pieces = [content for content in contents if content] or [b"\x00"]

    def changed(self, rng: Random, parts: Parts) -> Parts:
        """An input with one to a few changes in one or two of its parts; options (the first of several) seldom."""
        out = list(parts)
        for _ in range(1 if rng.random() < 0.8 else 2):
            first = 0 if len(out) == 1 or rng.random() < 0.1 else 1
            at = rng.randrange(first, len(out)) if first else 0
            out[at] = self.part(rng, out[at])[:LARGEST]
        return tuple(out)

    def part(self, rng: Random, content: bytes) -> bytes:
        """One part, changed; of a gzipped one mostly what is inside."""
        if content[:2] == b"\x1f\x8b" and rng.random() < 0.8:
            inside = _plain(content)
            if inside is not content:
                return gzip.compress(self.part(rng, inside), 1, mtime=0)
        for _ in range(min(1 + int(rng.expovariate(0.7)), 8)):
            content = self._once(rng, content)
        return content

    def _once(self, rng: Random, content: bytes) -> bytes:
        special = changes_of(content)
        if special and rng.random() < 0.65:
            done = rng.choice(special)(rng, content, self.words)
            if done is not None:
                return done
        return rng.choice(GENERAL)(self, rng, content)

    # By bytes

    def flip(self, rng: Random, content: bytes) -> bytes:
        """Some bits."""
        out = bytearray(content or b"\x00")
        for _ in range(rng.choice((1, 1, 2, 8))):
            out[_place(rng, out)] ^= 1 << rng.randrange(8)
        return bytes(out)

    def overwrite(self, rng: Random, content: bytes) -> bytes:
        """A few bytes by others."""
        at, n = _place(rng, content), rng.choice((1, 2, 4, 8, 16))
        return content[:at] + rng.choice((rng.randbytes(n), bytes(n), b"\xff" * n)) + content[at + n :]

    def number(self, rng: Random, content: bytes) -> bytes:
        """A whole number at a place where lengths and offsets stand: by an extreme, or by one near to it."""
        n, order = rng.choice((1, 2, 4, 4, 8)), rng.choice(("little", "big"))
        at = _place(rng, content) & ~(n - 1)
        old = int.from_bytes(content[at : at + n], order)  # type: ignore[arg-type]
        value = rng.choice((*formats.WHOLE, old + 1, old - 1, old * 2, old // 2, len(content), len(content) - at))
        told = (value & (1 << 8 * n) - 1).to_bytes(n, order)  # type: ignore[arg-type]
        return content[:at] + told + content[at + n :]

    def cut(self, rng: Random, content: bytes) -> bytes:
        """What a connection that breaks off leaves."""
        return content[: _place(rng, content)] if rng.random() < 0.7 else content[_place(rng, content) :]

    def leave_out(self, rng: Random, content: bytes) -> bytes:
        at, n = _place(rng, content), _length(rng)
        return content[:at] + content[at + n :]

    def repeat(self, rng: Random, content: bytes) -> bytes:
        """A piece again, once or many times."""
        at, n = _place(rng, content), _length(rng)
        piece, times = content[at : at + n], rng.choice((1, 1, 2, 16, 256))
        return content[:at] + (piece * times)[:LARGEST] + content[at:]

    def splice(self, rng: Random, content: bytes) -> bytes:
        """A piece of some seed, in the place of as much or between."""
        other = rng.choice(self.pieces)
        start, n, at = rng.randrange(len(other)), _length(rng), _place(rng, content)
        piece = other[start : start + n]
        return content[:at] + piece + content[at + (len(piece) if rng.random() < 0.5 else 0) :]

    def swap(self, rng: Random, content: bytes) -> bytes:
        """Two neighbouring pieces."""
        at, n = _place(rng, content), _length(rng)
        one, two = content[at : at + n], content[at + n : at + 2 * n]
        return content[:at] + two + one + content[at + 2 * n :]

    def word(self, rng: Random, content: bytes) -> bytes:
        """A word by another that a seed has, as long or not."""
        found = list(WORD.finditer(content, 0, 1 << 16))
        if not found:
            return self.splice(rng, content)
        old = rng.choice(found)
        return content[: old.start()] + rng.choice(self.words) + content[old.end() :]

    def figure(self, rng: Random, content: bytes) -> bytes:
        """A number that is written in digits by another."""
        start = _place(rng, content)
        found = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", content[start : start + 4096]))
        if not found:
            return self.number(rng, content)
        old = rng.choice(found)
        return content[: start + old.start()] + rng.choice(formats.FIGURES) + content[start + old.end() :]


GENERAL: tuple[Callable[[Mutator, Random, bytes], bytes], ...] = (
    Mutator.flip, Mutator.flip, Mutator.overwrite, Mutator.number, Mutator.number, Mutator.cut, Mutator.leave_out,
    Mutator.repeat, Mutator.splice, Mutator.swap, Mutator.word, Mutator.figure, Mutator.figure,
)  # fmt: skip


def changes_of(content: bytes) -> Sequence[formats.Change]:
    """What can be changed in the content while it keeps its form; nothing if the form is not known."""
    head = content[:64]
    if head[:6] == b"SIMPLE":
        return formats.FITS
    if head[:4] == b"PK\x03\x04":
        return containers.ARCHIVE
    if head[:4] == b"Obj\x01":
        return containers.AVRO
    if head[:4] in (b"PAR1", b"ARRO", b"\xff\xff\xff\xff"):
        return containers.WORDS
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 24:
        return formats.HEADED_8
    if len(head) > 5 and head[4:5] == b"{" and int.from_bytes(head[:4], "little") < 1 << 24:
        return formats.HEADED_4
    start = head.lstrip()[:1]
    if start in (b"{", b"["):
        return formats.JSON
    if start == b"<":
        return (*formats.XML, *formats.TEXT)
    return formats.TEXT if b"\n" in content[:4096] and b"\x00" not in content[:4096] else ()


def _place(rng: Random, content: bytes | bytearray) -> int:
    """Somewhere in the content: at its beginning, where headers are, at its end, where directories are, anywhere."""
    last = max(len(content) - 1, 0)
    where = rng.random()
    if where < 0.4:
        return rng.randint(0, min(last, 512))
    return rng.randint(max(0, last - 512), last) if where < 0.6 else rng.randint(0, last)


def _length(rng: Random) -> int:
    return rng.choice((1, 2, 4, 8, 80, 2880, rng.randint(1, 64), rng.randint(1, 4096)))


def _plain(content: bytes) -> bytes:
    """What a gzipped part unfolds to, if that is not much and it is not damaged; else the part itself."""
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        unfolding = zlib.decompressobj(31)
        out = unfolding.decompress(content, UNFOLDED)
    except zlib.error:
        return content
    return out if unfolding.eof else content
