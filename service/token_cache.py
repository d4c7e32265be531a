"""Tokens that were made once: kept by what they were made of, so that a new encoder needs no pixels.

    TokenCache    payload, codec and modality -> tokens and QA flags, in one SQLite file
    CachedTokens  an engine that looks there before it tokenizes
    with_token_cache  a core whose engine does

What is kept are tokens of the kinds that networks tokenize, images, spectra and maps: about 1.2 kB an image. A number
is tokenized faster than it is looked up.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from albireo.index.byte_cache import ByteCache, Counts
from albireo.models.engine import CodecEngine, Engine, Tokens
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation, Payload
from albireo.service.engine_around import EngineAround, uncached

if TYPE_CHECKING:
    from albireo.service.core import Core
    from albireo.service.settings import Settings

KEPT_KINDS = frozenset({"image", "spectrum", "segmentation"})
"""Kinds of modality whose tokens are kept."""

RECIPE = 1
"""Raised when the code gives a payload other tokens or flags than before."""

FILE = "tokens.sqlite"


@dataclass(frozen=True)
class Kept:
    """ids (n,) int64 and QA flags of one payload."""

    ids: NDArray[np.int64]
    flags: tuple[str, ...]


class TokenCache:
    """In `folder`, of at most `limit` bytes; several processes may share it. Safe to use from any thread."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._bytes = ByteCache(folder.expanduser() / FILE, limit)

    @property
    def counts(self) -> Counts:
        """Of this process."""
        return self._bytes.counts

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """What is kept under `key_of` keys; what is not, or is damaged, is left out."""
        return {key: _unpacked(value) for key, value in self._bytes.get(keys).items()}

    def put(self, kept: Mapping[bytes, Kept]) -> None:
        """Keep tokens; the least recently used make room."""
        self._bytes.put({key: _packed(one) for key, one in kept.items()})

    def close(self) -> None:
        self._bytes.close()


def key_of(key: str, payload: Payload, codec: str) -> bytes:
    """sha256 over a modality's token key, every field of the payload to the bit, and what else decides its tokens."""
    digest = hashlib.sha256()
    for part in _parts((RECIPE, key, codec, payload)):
        digest.update(part)
    return digest.digest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    """A value as bytes that no other value has: each begins with its type, and says how long it is."""
    if value is None:
        yield b"N"
    elif isinstance(value, np.ndarray):
        if value.dtype.kind == "U":
            yield from _parts(("texts", value.shape, *value.ravel().tolist()))
            return
        plain = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        yield from _parts(("array", plain.dtype.str, value.shape))
        yield plain.reshape(-1).view(np.uint8).data
    elif isinstance(value, str):
        text = value.encode()
        yield b"S" + struct.pack("<Q", len(text)) + text
    elif isinstance(value, bool | np.bool_):
        yield b"T" if value else b"F"
    elif isinstance(value, int | np.integer):
        yield from _parts(("int", str(int(value))))
    elif isinstance(value, float | np.floating):
        yield b"D" + struct.pack("<d", value)
    elif isinstance(value, tuple):
        yield b"(" + struct.pack("<Q", len(value))
        for one in value:
            yield from _parts(one)
    elif is_dataclass(value):
        yield from _parts((type(value).__name__, *((one.name, getattr(value, one.name)) for one in fields(value))))
    else:
        raise TypeError(f"a payload with a {type(value).__name__}")


def _packed(kept: Kept) -> bytes:
    """Tokens in as many bytes as the largest needs, 2, 4 or 8, then the flags."""
    largest = int(kept.ids.max(initial=0))
    kind = "<u2" if largest < 1 << 16 else "<u4" if largest < 1 << 32 else "<i8"
    ids = kept.ids.astype(kind).tobytes()
    return struct.pack("<BI", int(kind[-1]), len(kept.ids)) + ids + "\n".join(kept.flags).encode()


def _unpacked(value: bytes) -> Kept:
    width, count = struct.unpack_from("<BI", value)
    start = struct.calcsize("<BI")
    ids = np.frombuffer(value, {2: "<u2", 4: "<u4", 8: "<i8"}[width], count, start)
    text = value[start + count * width :].decode()
    return Kept(ids.astype(np.int64), tuple(text.split("\n")) if text else ())


class CachedTokens(EngineAround):
    """An Engine that tokenizes only what the cache does not have. Its answers are those of the engine inside."""

    def __init__(self, engine: CodecEngine, cache: TokenCache) -> None:
        super().__init__(engine)
        self.codecs = engine
        self.cache = cache
        self._codec: dict[str, str] = {}

    @property
    def uncached(self) -> Engine:
        return uncached(self.codecs)

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        """Tokens of each object, or why it has none."""
        keys = [key for key in MODALITIES if kinds is None or MODALITIES[key].kind in kinds]
        split = [i for i, one in enumerate(observations) if self._has_kept(one, keys)]
        rest = [i for i in range(len(observations)) if i not in set(split)]
        out: dict[int, Tokens | AlbireoError] = {}
        if rest:
            out |= zip(rest, self.codecs.tokenize([observations[i] for i in rest], kinds), strict=True)
        if split:
            out |= zip(split, self._tokenized([observations[i] for i in split], keys), strict=True)
        return [out[i] for i in range(len(observations))]

    def _has_kept(self, observation: Observation, keys: Sequence[str]) -> bool:
        """Whether tokens of it may be kept; what the checkpoint does not read is left to the engine to refuse."""
        mine = observation.data.keys() & set(keys)
        return mine <= self.inputs.keys() and any(MODALITIES[key].kind in KEPT_KINDS for key in mine)

    def _tokenized(self, observations: Sequence[Observation], keys: Sequence[str]) -> list[Tokens | AlbireoError]:
        """Each modality of each object by itself, put together as the engine does."""
        hashes = {
            (i, key): key_of(key, one.data[key], self._codec_of(key))
            for i, one in enumerate(observations)
            for key in keys
            if key in one.data and MODALITIES[key].kind in KEPT_KINDS
        }
        known = self.cache.get(list(dict.fromkeys(hashes.values())))
        parts: dict[tuple[int, str], Kept | AlbireoError] = {}
        new: dict[bytes, Kept] = {}
        for key in keys:
            at = [i for i, one in enumerate(observations) if key in one.data]
            lacking = [i for i in at if hashes.get((i, key)) not in known]
            made = dict(zip(lacking, self._made(key, [observations[i] for i in lacking]), strict=True))
            for i in at:
                part = made[i] if i in made else known[hashes[i, key]]
                parts[i, key] = part
                if i in made and (i, key) in hashes and isinstance(part, Kept):
                    new[hashes[i, key]] = part
        self.cache.put(new)
        return [self._whole(i, one, keys, parts) for i, one in enumerate(observations)]

    def _made(self, key: str, observations: Sequence[Observation]) -> list[Kept | AlbireoError]:
        """Tokens and flags of one modality of objects, by the engine."""
        alone = [Observation(one.id, {key: one.data[key]}) for one in observations]
        out: list[Kept | AlbireoError] = []
        for one, result in zip(alone, self.codecs.tokenize(alone) if alone else (), strict=True):
            if isinstance(result, AlbireoError):
                out.append(result)
            else:
                of_object = set(self.codecs.object_flags(one))
                out.append(Kept(result.ids[key], tuple(flag for flag in result.flags if flag not in of_object)))
        return out

    def _whole(
        self,
        i: int,
        observation: Observation,
        keys: Sequence[str],
        parts: Mapping[tuple[int, str], Kept | AlbireoError],
    ) -> Tokens | AlbireoError:
        mine = [key for key in keys if key in observation.data]
        ids: dict[str, NDArray[np.int64]] = {}
        flags: list[str] = []
        if next(key for key in MODALITIES if key in observation.data) in mine:
            flags += self.codecs.object_flags(observation)
        for key in mine:
            part = parts[i, key]
            if isinstance(part, AlbireoError):
                return part
            ids[key] = part.ids
            flags += part.flags
        return Tokens(ids, flags=tuple(dict.fromkeys(flags)))

    def _codec_of(self, key: str) -> str:
        if key not in self._codec:
            self._codec[key] = self.codecs.codec(key)
        return self._codec[key]


def with_token_cache(core: Core, settings: Settings) -> Core:
    """The same core with a cache of tokens, if the settings name one and the engine has none."""
    if settings.token_cache is None or _cached(core.engine):
        return core
    from albireo.service.core import Core

    cache = TokenCache(settings.token_cache, settings.token_cache_bytes)
    engine = CachedTokens(cast(CodecEngine, core.engine), cache)
    return Core(lambda: engine, lambda: core.collections, lambda: core.described, lambda: core.shelf)


def _cached(engine: Engine) -> bool:
    """Whether a cache of tokens stands around an engine already."""
    while isinstance(engine, EngineAround):
        if isinstance(engine, CachedTokens):
            return True
        engine = engine.engine
    return False
