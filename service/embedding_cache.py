"""Embeddings that were computed once, in the memory of this process: the least recently used go first.

EmbeddingCache    tokens, pooling and space -> embedding, of bounded size
CachedEmbeddings  an engine that looks there before it encodes
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from albireo.models.engine import Embedding, Engine, Pooling, Tokens
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.service.engine_around import EngineAround, uncached

KEPT: tuple[Pooling, ...] = ("mean", "mean_per_modality")
"""Poolings that are kept: states of all tokens are megabytes an object."""

ENTRY_BYTES = 600
"""What an entry costs beside its vectors."""


class EmbeddingCache:
    """At most `limit` bytes. Safe to use from any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Embedding | None:
        """What is kept under a key."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: bytes, embedding: Embedding) -> None:
        """Keep an embedding; the least recently used make room, and one too large for all of it is not kept."""
        values = embedding.values.copy()  # it may be a view of a whole batch
        values.flags.writeable = False
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self.size -= old.values.nbytes + ENTRY_BYTES
            if values.nbytes + ENTRY_BYTES > self.limit:
                return
            self._entries[key] = replace(embedding, values=values)
            self.size += values.nbytes + ENTRY_BYTES
            while self.size > self.limit:
                _, gone = self._entries.popitem(last=False)
                self.size -= gone.values.nbytes + ENTRY_BYTES


class CachedEmbeddings(EngineAround):
    """An Engine that encodes only what the cache does not have; an embedding from there is `cached`.

    What else is in a batch changes the last digits of an embedding; the one that was kept is as right as another.
    """

    def __init__(self, engine: Engine, cache: EmbeddingCache) -> None:
        super().__init__(engine)
        self.cache = cache

    @property
    def uncached(self) -> Engine:
        return uncached(self.engine)

    def embed_each(
        self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean"
    ) -> list[Embedding | AlbireoError]:
        """Embedding of each object, or why it has none."""
        poolings: list[Pooling] = [pooling] * len(tokens) if isinstance(pooling, str) else list(pooling)
        keys = [_key(one, self.space(how)) if how in KEPT else None for one, how in zip(tokens, poolings, strict=True)]
        out: dict[int, Embedding | AlbireoError] = {}
        for i, key in enumerate(keys):
            found = None if key is None else self.cache.get(key)
            if found is not None:
                out[i] = replace(found, cached=True)
        at = [i for i in range(len(tokens)) if i not in out]
        if at:
            made = self.engine.embed_each([tokens[i] for i in at], [poolings[i] for i in at])
            for i, result in zip(at, made, strict=True):
                out[i] = result
                key = keys[i]
                if key is not None and not isinstance(result, AlbireoError):
                    self.cache.put(key, result)
        return [out[i] for i in range(len(tokens))]


def _key(tokens: Tokens, space: str) -> bytes:
    """sha256 over a space and the tokens, those that are left out among them."""
    digest = hashlib.sha256(space.encode())
    for key in MODALITIES:
        if key in tokens.ids:
            mask = tokens.mask.get(key)
            digest.update(f"\n{key} {len(tokens.ids[key])} {mask is not None}\n".encode())
            digest.update(tokens.ids[key].astype("<i8").tobytes())
            digest.update(b"" if mask is None else mask.tobytes())
    return digest.digest()
