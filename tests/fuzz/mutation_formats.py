"""Changes of files that keep their form: cards of FITS, cells of tables, tags, values of JSON.

Each takes a generator, the content, and words that seeds have, and gives the content changed, or None if it cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Change = Callable[[Random, bytes, Sequence[bytes]], bytes | None]

WHOLE = (
    *(0, 1, 2, 3, 7, 8, 16, 64, 95, 96, 97, 127, 128, 255, 256, 1000, 32767, 65535, 65536, 1 << 20, (1 << 24) - 1),
    *(1 << 28, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
    *(-1, -2, -8, -100),
)

FIGURES = (
    *(str(number).encode() for number in WHOLE),
    *b"nan NaN inf -inf 1e400 -1e400 1e-400 1e308 1e38 3.5e38 0.0 -0.0 1e16 9007199254740993.0 1e5000 1_000".split(),
    *b"99999999999999999999999999 1e --1 0x10 1;2 None null true T".split(),
    *(b"", b" ", b"9" * 400, "٣".encode(), "²".encode(), "−1".encode()),
)
"""Numbers in digits, and what stands where one should."""

TEXTS = (
    b"",
    b" ",
    b"\x00",
    b"'",
    b'"',
    b"\xff\xfe",
    "é".encode(),
    "𝒳".encode(),
    b"a" * 5000,
    b"%s%n",
    b"../../x",
    b"\r\n",
    b"\x1f\x8b",
)


# FITS: cards and HDUs

_BLOCK, _CARD = 2880, 80
_KEYWORDS = (
    b"NAXIS NAXIS1 NAXIS2 NAXIS3 BITPIX BSCALE BZERO BLANK BUNIT PCOUNT GCOUNT TFIELDS TFORM1 TFORM2 TDIM1 TSCAL1 "
    b"TZERO1 TNULL1 TUNIT1 TTYPE1 TTYPE2 THEAP EXTNAME EXTEND XTENSION CTYPE1 CTYPE2 CRVAL1 CRPIX1 CD1_1 CDELT1 CUNIT1 "
    b"A_ORDER A_1_1 RADESYS EQUINOX MAGZERO FLUXMAG0 BANDS SURVEY CONTINUE HIERARCH COEFF0 COEFF1 ZIMAGE ZCMPTYPE "
    b"ZBITPIX ZNAXIS1 ZTILE1 ZVAL1 ZSCALE ZZERO ZQUANTIZ FILTER VACUUM"
).split()
_TOLD = [
    "A",
    "1E",
    "1PE(99999999)",
    "1QE(3)",
    "0J",
    "999999999E",
    "1X",
    "3A",
    "nanomaggy",
    "Jy/beam",
    "mag(AB)",
    "10**400 m",
    "RA---TPV",
    "LINEAR",
    "deg",
    "it''s",
    "GZIP_1",
    "RICE_1",
    "HCOMPRESS_1",
    "PLIO_1",
    "(3;3)",
    "(0;-1)",
]
_VALUES = (
    *(b"%20s" % figure[:60] for figure in FIGURES),
    *(b"'%-8s'" % text.replace(";", ",").encode() for text in _TOLD),
    *(b"'unterminated", b"", b"(1.0, 2.0)", b"T / comment"),
)


def _headers(content: bytes) -> list[tuple[int, int]]:
    """(begin, end) of the cards of each header that stands at the beginning of a block."""
    found = []
    for start in range(0, min(len(content), 400 * _BLOCK), _BLOCK):
        if content[start : start + 6] == b"SIMPLE" or content[start : start + 8] == b"XTENSION":
            end = content.find(b"END" + b" " * 77, start)
            found.append((start, end if end >= 0 else min(start + _BLOCK, len(content))))
    return found


def _card(rng: Random, content: bytes) -> int | None:
    headers = _headers(content)
    if not headers:
        return None
    start, end = rng.choice(headers)
    return start + _CARD * rng.randrange(max((end - start) // _CARD, 1))


def card_value(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """Another value of one card."""
    at = _card(rng, content)
    if at is None:
        return None
    value = rng.choice(_VALUES) if rng.random() < 0.8 else b"'%-8s'" % rng.choice(words)
    card = content[at : at + 8].ljust(8) + b"= " + value
    return content[:at] + card[:_CARD].ljust(_CARD) + content[at + _CARD :]


def card_name(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """Another keyword of one card, so that a card is gone and one may be there twice."""
    at = _card(rng, content)
    if at is None:
        return None
    name = rng.choice(_KEYWORDS) if rng.random() < 0.7 else rng.choice(words).upper()[:8]
    return content[:at] + name.ljust(8) + content[at + 8 :]


def card_more(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """One card in the place of another: of this file, a new one, or blanks."""
    at, other = _card(rng, content), _card(rng, content)
    if at is None or other is None:
        return None
    new = rng.choice(
        (content[other : other + _CARD], rng.choice(_KEYWORDS).ljust(8) + b"= " + rng.choice(_VALUES), b"")
    )
    return content[:at] + new[:_CARD].ljust(_CARD) + content[at + _CARD :]


def hdu_order(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """An HDU left out, given twice, or at another place."""
    starts = [start for start, _ in _headers(content)]
    if len(starts) < 2:
        return None
    units = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    unit = rng.choice(units[1:])
    without = [one for one in units if one is not unit]
    more = rng.choice((without, [*units, unit], [without[0], *rng.sample([*without[1:], unit], len(without))]))
    return b"".join(more)


FITS: Sequence[Change] = (card_value, card_value, card_value, card_name, card_more, hdu_order)


# Text: lines and cells


def lines(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """Lines left out, given again, in another order, or cut from their separators."""
    rows = content.split(b"\n")
    at = min(rng.randrange(len(rows)), rng.randrange(len(rows)))
    what = rng.randrange(5)
    if what == 0:
        del rows[at]
    elif what == 1:
        rows[at:at] = [rows[at]] * rng.choice((1, 2, 100))
    elif what == 2:
        other = rng.randrange(len(rows))
        rows[at], rows[other] = rows[other], rows[at]
    elif what == 3:
        rows[at] = rows[at].replace(rng.choice((b",", b" ", b":", b"=")), rng.choice((b"", b";", b"\t", b",,", b" , ")))
    else:
        rows[at] = rng.choice((b"#", b"# ", b'"', b"\t", b"")) + rows[at]
    return b"\n".join(rows)


def cell(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """A cell, a name or a value of one line by another."""
    rows = content.split(b"\n")
    at = min(rng.randrange(len(rows)), rng.randrange(len(rows)))
    separator = next((one for one in (b",", b"\t", b": ", b" ") if one in rows[at]), b" ")
    cells = rows[at].split(separator)
    k = rng.randrange(len(cells))
    cells[k] = rng.choice((rng.choice(FIGURES), rng.choice(words), rng.choice(TEXTS), cells[rng.randrange(len(cells))]))
    rows[at] = separator.join(cells)
    return b"\n".join(rows)


TEXT: Sequence[Change] = (lines, cell, cell)


# XML


def element(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """A tag left out, given twice, nested many times, or with another attribute or value."""
    tags = list(re.finditer(rb"<[^<>]{1,400}>", content[: 1 << 16]))
    if not tags:
        return None
    tag = rng.choice(tags)
    text = tag.group()
    values = list(re.finditer(rb'="[^"]*"', text))
    if values and rng.random() < 0.6:
        old = rng.choice(values)
        value = rng.choice(
            (rng.choice(FIGURES), rng.choice(words), b"*", b"1x*", b"2x3", b"unicodeChar", b"bit", b"char", b"BINARY2")
        )
        new = text[: old.start()] + b'="' + value + b'"' + text[old.end() :]
    else:
        new = rng.choice(
            (b"", text * 2, text * 500, b"<!-- " + text, b"&amp;", b"&x;", b"<![CDATA[", text[:-1] + b' a="1">')
        )
    return content[: tag.start()] + new + content[tag.end() :]


XML: Sequence[Change] = (element, element)


# JSON, alone or as the header of arrays

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 1e308, 1 << 31, 1 << 63, 1 << 64, 10**30, float("nan"), float("-inf")),
    *("", "x", "\ud800", "a" * 5000, "NaN", "1e999", "2020-01-01", "\x00"),
    *([], {}, [[]], [None], {"": None}, {"class": "Image"}, {"array": "O", "shape": [1]}, {"tuple": []}, [0] * 1000),
)


def _spots(value: Any, found: list[tuple[Any, Any]], depth: int = 0) -> list[tuple[Any, Any]]:
    """(container, key) of values inside, up to some thousands."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        if len(found) < 4000 and depth < 50:
            found.append((value, key))
            _spots(one, found, depth + 1)
    return found


def _changed(rng: Random, value: Any, words: Sequence[bytes]) -> Any:
    """A JSON value with one of its values, keys or entries changed; the value itself is changed too."""
    spots = _spots(value, [])
    if not spots or rng.random() < 0.03:
        return rng.choice((*ODD, [value], {"x": value}))
    holder, key = rng.choice(spots)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice((*words, b"", b"x")).decode("latin-1")] = holder.pop(key)
    elif what == 1:
        holder[key:key] = [holder[key]] * rng.choice((1, 2, 50))
    elif what == 2:
        other, name = rng.choice(spots)
        holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
    elif what == 3:
        holder[key] = rng.choice(words).decode("latin-1")
    elif what == 4 and isinstance(holder[key], int | float):
        holder[key] = rng.choice((*WHOLE, holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 1e30))
    else:
        holder[key] = rng.choice(ODD)
    return value


def json_value(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """Another value, key or entry somewhere."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    try:
        return json.dumps(_changed(rng, value, words)).encode()
    except (ValueError, OverflowError, RecursionError, IndexError, KeyError, TypeError):
        return None


def json_deep(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """Nested deeper than a parser may like."""
    at = rng.choice([found.start() for found in re.finditer(rb"[\[{\d]", content[: 1 << 16])] or [0])
    n = rng.choice((10, 200, 1200, 20_000))
    return content[:at] + rng.choice((b"[" * n, b'{"a":' * n, b"[" * n + b"]" * n)) + content[at:]


JSON: Sequence[Change] = (json_value, json_value, json_value, json_value, json_value, json_deep)


def _headed(width: int) -> Sequence[Change]:
    """Changes of what is [length of the header, `width` bytes][JSON header][arrays]."""

    def inside(change: Change) -> Change:
        def changed(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
            length = int.from_bytes(content[:width], "little")
            header = change(rng, content[width : width + length], words)
            if header is None:
                return None
            return len(header).to_bytes(width, "little") + header + content[width + length :]

        return changed

    return [inside(change) for change in JSON]


HEADED_4, HEADED_8 = _headed(4), _headed(8)
