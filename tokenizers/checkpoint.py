"""A checkpoint folder, described without torch: what it reads, how many tokens that costs, and its fingerprint.

The layout is AION-1's: `config.json`, `model.safetensors`, `codecs/<name>/{config.json,model.safetensors}`.
Token counts and vocabularies are read from the tensors' shapes in the safetensors headers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from albireo.observations.errors import BadCheckpoint
from albireo.observations.modalities import MODALITIES

TOKENIZED_KINDS = frozenset({"image", "spectrum", "coefficients", "scalar", "segmentation", "catalog"})
"""Kinds of modality that have a tokenizer here."""

CATALOG_TOKENS = 50
"""Most tokens of a catalog that AION-1's encoder reads: 10 objects. Its files do not say so: by a slip in the released
code their table of positions has all of its 512 rows."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class TokenSpec:
    """What one modality costs in a checkpoint: tokens per object, and how many different tokens there are."""

    n_tokens: int
    vocab_size: int


class Checkpoint:
    """A folder in AION-1's layout. Opening it reads headers and configurations only.

    name     the folder's name, e.g. "albireo-mini"
    inputs   token key -> TokenSpec of what the encoder reads and a codec is there for, in the table's order
    outputs  token key -> TokenSpec of what the decoder predicts in one step (a catalog is a sequence of its own)
    Raises BadCheckpoint if the folder is not of this layout.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self.config: dict[str, Any] = self._json(self.folder / CONFIG)
        self.shapes = self._header(self.folder / WEIGHTS)
        self.inputs = {
            key: self._spec("encoder_embeddings", "token_emb", key)
            for key in self._domains("domains_in")
            if MODALITIES[key].kind in TOKENIZED_KINDS and self.codec_folder(key).is_dir()
        }
        self.outputs = {
            key: self._spec("decoder_embeddings", "to_logits", key)
            for key in self._domains("domains_out")
            if MODALITIES[key].kind != "catalog"
        }

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return int(self.config["dim"])

    @property
    def max_tokens(self) -> int:
        """Tokens of an object that has every modality once."""
        return sum(spec.n_tokens for spec in self.inputs.values())

    def codec_folder(self, key: str) -> Path:
        """Folder of the codec that tokenizes the modality `key`."""
        return self.folder / "codecs" / MODALITIES[key].codec

    def codec_config(self, key: str) -> dict[str, Any]:
        """Configuration of the codec that tokenizes the modality `key`."""
        return self._json(self.codec_folder(key) / CONFIG)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every configuration and weight file, by path: the identity of the numbers it computes."""
        digest = hashlib.sha256()
        folders = [self.folder, *dict.fromkeys(self.codec_folder(key) for key in self.inputs)]
        for path in sorted(folder / name for folder in folders for name in (CONFIG, WEIGHTS)):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self.folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()

    def space(self, pooling: str) -> str:
        """Name of the embedding space: vectors are comparable only if this is equal."""
        return f"{self.name}@{self.fingerprint[:12]}:{pooling}"

    def _domains(self, which: str) -> list[str]:
        named = self.config.get(which)
        if not isinstance(named, list):
            raise self._invalid(self.folder / CONFIG, f"no list {which!r}")
        unknown = set(named) - MODALITIES.keys()
        if unknown:
            raise self._invalid(self.folder / CONFIG, f"{which} names unknown modalities: {', '.join(sorted(unknown))}")
        return [key for key in MODALITIES if key in named]

    def _spec(self, part: str, table: str, key: str) -> TokenSpec:
        try:
            vocab_size, _ = self.shapes[f"{part}.{key}.{table}.weight"]
            _, n_tokens, _ = self.shapes[f"{part}.{key}.pos_emb"]
        except (KeyError, ValueError) as error:
            raise self._invalid(self.folder / WEIGHTS, f"no {part} of {key}") from error
        if MODALITIES[key].kind == "catalog":
            n_tokens = min(n_tokens, CATALOG_TOKENS)
        return TokenSpec(n_tokens, vocab_size)

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self._invalid(path, str(error)) from error
        if not isinstance(content, dict):
            raise self._invalid(path, "not a JSON object")
        return content

    def _header(self, path: Path) -> Mapping[str, tuple[int, ...]]:
        """Tensor shapes of a safetensors file: u64 length, JSON header."""
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > path.stat().st_size:
                    raise ValueError("header longer than the file")
                header = json.loads(stream.read(length))
            return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
            raise self._invalid(path, str(error)) from error

    def _invalid(self, path: Path, message: str) -> BadCheckpoint:
        return BadCheckpoint(
            "checkpoint_invalid",
            message,
            file=str(path),
            fix="the folder needs config.json, model.safetensors and codecs/<name>/{config.json,model.safetensors}",
        )


MINI = Path(__file__).parent.parent / "models" / "albireo-mini"
"""The checkpoint that is shipped with the package."""
