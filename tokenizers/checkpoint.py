"""A checkpoint folder, described without torch: what it reads, how many tokens that costs, and its identity.

The layout is AION-1's: `config.json`, `model.safetensors`, `codecs/<name>/{config.json,model.safetensors}`, and, in a
folder that came from a hub, a manifest of every file that is there, whether it is on this disk or not.
Token counts and vocabularies are read from the tensors' shapes in the safetensors headers.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.preprocessing import AION_1, PREPROCESSINGS

TOKENIZED_KINDS = frozenset({"image", "spectrum", "coefficients", "scalar", "segmentation", "catalog"})
"""Kinds of modality that have a tokenizer here."""

CATALOG_TOKENS = 50
"""Most tokens of a catalog that AION-1's encoder reads: 10 objects. Its files do not say so: by a slip in the released
code their table of positions has all of its 512 rows."""

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "albireo-manifest.json"

LAYOUT = re.compile(rf"(?:codecs/\w[\w.-]*/)?(?:{re.escape(CONFIG)}|{re.escape(WEIGHTS)})")
"""Paths of the files that make a checkpoint; no other file of a repository is ever fetched."""

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TokenSpec:
    """What one modality costs in a checkpoint: tokens per object, and how many different tokens there are.

    places  rows of its table of positions, if that has more than `n_tokens`
    """

    n_tokens: int
    vocab_size: int
    places: int | None = None


class Inputs(dict[str, TokenSpec]):
    """Token key -> TokenSpec of what a checkpoint reads, in the table's order.

    elsewhere  token key -> how to get the codec of a modality that the encoder reads and this folder has no codec of
    """

    elsewhere: Mapping[str, str] = {}

    def lack(self, *keys: str) -> BadInput:
        """The error of modalities that are not read."""
        names = ", ".join(MODALITIES[key].name for key in keys)
        if fixes := [self.elsewhere[key] for key in keys if key in self.elsewhere]:
            return BadInput(
                "modality_not_in_checkpoint", f"the codec of {names} was not pulled", field=names, fix="; ".join(fixes)
            )
        return BadInput(
            "modality_not_in_checkpoint",
            f"the checkpoint was not trained on {names}",
            field=names,
            fix="use a checkpoint that reads it, or give another modality of the object",
        )


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder is a copy of.

    repository, revision  hub id and commit of the model
    codecs_from           hub id and commit of its codecs; the model's own unless another repository has them
    license               as its card states it, or None
    files                 path in the folder -> FileFacts, for every file of the layout
    """

    repository: str
    revision: str
    codecs_from: tuple[str, str]
    license: str | None
    files: Mapping[str, FileFacts]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, None if it has none. BadCheckpoint if it cannot be understood."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
            files = {name: FileFacts(int(row["size"]), str(row["sha256"])) for name, row in content["files"].items()}
            if wrong := [name for name in files if not LAYOUT.fullmatch(name)]:
                raise ValueError(f"{wrong[0]!r} is no file of a checkpoint")
            if wrong := [facts.sha256 for facts in files.values() if not SHA256.fullmatch(facts.sha256)]:
                raise ValueError(f"{wrong[0]!r} is no sha256")
            repository, revision = content["codecs_from"]
            texts = (content["repository"], content["revision"], repository, revision)
            if not all(isinstance(text, str) for text in texts) or not isinstance(content["license"], str | None):
                raise ValueError(f"{(*texts, content['license'])} are not all texts")
            return cls(content["repository"], content["revision"], (repository, revision), content["license"], files)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise BadCheckpoint(
                "checkpoint_invalid", f"{error!r}", file=str(path), fix="delete the folder and pull the model again"
            ) from error

    def text(self) -> str:
        """The manifest as it is written."""
        files = {path: {"size": facts.size, "sha256": facts.sha256} for path, facts in sorted(self.files.items())}
        content = {
            "repository": self.repository,
            "revision": self.revision,
            "codecs_from": self.codecs_from,
            "license": self.license,
            "files": files,
        }
        return json.dumps(content, indent=1) + "\n"

    def check(self, folder: Path) -> Iterator[tuple[str, str | None]]:
        """(path, None or what is wrong) of every file that should be in `folder`; reads every byte.

        Weights of codecs that were not pulled are left out.
        """
        for path, facts in sorted(self.files.items()):
            file = folder / path
            if not file.exists():
                if not (path.startswith("codecs/") and path.endswith(WEIGHTS)) or file.is_symlink():
                    yield path, "is not there"
            elif (size := file.stat().st_size) != facts.size:
                yield path, f"has {size} bytes instead of {facts.size}"
            else:
                yield path, None if sha256_of(file) == facts.sha256 else "has another sha256 than was published"


class Checkpoint:
    """A folder in AION-1's layout. Opening it reads headers and configurations only.

    name     the model's name, e.g. "albireo-mini": that of its repository, else that of the folder
    readable token key -> TokenSpec of what the encoder reads, in the table's order
    inputs   those of them that a codec is there for
    outputs  token key -> TokenSpec of what the decoder predicts in one step (a catalog is a sequence of its own)
    manifest what the folder is a copy of, None if it was not pulled from a hub

    `preprocessing` overrides what the codecs' configurations name. Raises BadCheckpoint if the folder is not of this
    layout, BadInput if there is no such preprocessing.
    """

    def __init__(self, folder: str | Path, preprocessing: str | None = None) -> None:
        if preprocessing not in (None, *PREPROCESSINGS):
            raise BadInput(
                "option_invalid",
                f"there is no preprocessing {preprocessing!r}",
                field="preprocessing",
                fix=" or ".join(PREPROCESSINGS),
            )
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.name = self.manifest.repository.rpartition("/")[2] if self.manifest else self.folder.name
        self.config: dict[str, Any] = self._json(self.folder / CONFIG)
        header = self._header(self.folder / WEIGHTS)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: shape for name, (_, shape) in header.items()}
        self.dtypes: frozenset[str] = frozenset(dtype for dtype, _ in header.values())
        self._preprocessing = preprocessing
        self.readable = {
            key: self._spec("encoder_embeddings", "token_emb", key)
            for key in self._domains("domains_in")
            if MODALITIES[key].kind in TOKENIZED_KINDS
        }
        self.inputs = Inputs((key, spec) for key, spec in self.readable.items() if self._has_codec(key))
        self.inputs.elsewhere = {key: self._pull(key) for key in self.readable if self._published(key)}
        self.outputs = {
            key: self._spec("decoder_embeddings", "to_logits", key)
            for key in self._domains("domains_out")
            if MODALITIES[key].kind != "catalog"
        }

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        dim = self.config.get("dim")
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise self._invalid(self.folder / CONFIG, f"dim {dim!r}")
        return dim

    @property
    def max_tokens(self) -> int:
        """Tokens of an object that has every modality once."""
        return sum(spec.n_tokens for spec in self.inputs.values())

    def codec_folder(self, key: str) -> Path:
        """Folder of the codec that tokenizes the modality `key`."""
        return self.folder / "codecs" / MODALITIES[key].codec

    def codec_config(self, key: str) -> dict[str, Any]:
        """Configuration of the codec that tokenizes the modality `key`; its preprocessing is the checkpoint's."""
        config = self._json(self.codec_folder(key) / CONFIG)
        return config if self._preprocessing is None else config | {"preprocessing": self._preprocessing}

    def codec_fingerprint(self, key: str) -> str:
        """sha256 over the configuration, preprocessing included, and the weights of the codec of a modality."""
        config = {"preprocessing": AION_1} | self.codec_config(key)
        path = (self.codec_folder(key) / WEIGHTS).relative_to(self.folder)
        text = f"{json.dumps(config, sort_keys=True)} {self._sha256(path.as_posix())}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def of_aion(self) -> bool:
        """Whether it was trained on AION-1's selection of the sky; another checkpoint names its own in its config."""
        return "training_domain" not in self.config

    @property
    def coded(self) -> dict[str, TokenSpec]:
        """Inputs, and outputs that a codec is there for: what can be turned into tokens or back."""
        return self.inputs | {key: spec for key, spec in self.outputs.items() if self._has_codec(key)}

    @cached_property
    def preprocessing(self) -> str:
        """Version of the preprocessing, or versions joined by "+" where the codecs' own differ."""
        named = {str(self.codec_config(key).get("preprocessing", AION_1)) for key in self._codecs}
        return self._preprocessing or "+".join(sorted(named)) or AION_1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every configuration and weight file, by path: the identity of the numbers it computes.

        A manifest stands for the files that it names, so that it is the same whichever of the codecs were pulled.
        """
        folders = [self.folder, *dict.fromkeys(self.codec_folder(key) for key in self._codecs)]
        paths = [(folder / name).relative_to(self.folder) for folder in folders for name in (CONFIG, WEIGHTS)]
        digest = hashlib.sha256()
        for path in sorted(PurePosixPath(path.as_posix()) for path in paths):
            digest.update(f"{path} {self._sha256(str(path))}\n".encode())
        return digest.hexdigest()

    def space(self, pooling: str, normalize: bool = False) -> str:
        """Name of the embedding space: vectors are comparable only if all that follows the @ is equal."""
        identity = [self.fingerprint[:12], self.preprocessing, pooling] + ["l2"] * normalize
        return f"{self.name}@{':'.join(identity)}"

    @cached_property
    def _codecs(self) -> list[str]:
        """Token keys of the encoder that the checkpoint has a codec of, on this disk or where it came from."""
        return [key for key in self._domains("domains_in") if self._has_codec(key) or self._published(key)]

    def _has_codec(self, key: str) -> bool:
        """True if the codec is on this disk. One without weights is damaged, unless the manifest has them."""
        return self.codec_folder(key).is_dir() and not self._published(key)

    def _published(self, key: str) -> bool:
        """True if the codec's weights are where the folder came from, but not on this disk."""
        path = self.codec_folder(key) / WEIGHTS
        published = self.manifest.files if self.manifest else {}
        return path.relative_to(self.folder).as_posix() in published and not path.exists()

    def _pull(self, key: str) -> str:
        """The command that gets a codec."""
        assert self.manifest is not None
        model = f"{self.manifest.repository}@{self.manifest.revision}"
        return f"albireo models pull {model} --modality {MODALITIES[key].name}"

    def _sha256(self, path: str) -> str:
        """sha256 (hex) of a file's content, as the manifest has it if the size on disk agrees."""
        file, facts = self.folder / path, self.manifest.files.get(path) if self.manifest else None
        try:
            if facts is None:
                return sha256_of(file)
            if file.exists() and file.stat().st_size != facts.size:
                raise self._invalid(file, f"{file.stat().st_size} bytes, the manifest says {facts.size}")
            return facts.sha256
        except OSError as error:
            raise self._invalid(file, str(error)) from error

    def _domains(self, which: str) -> list[str]:
        named = self.config.get(which)
        if not isinstance(named, list) or not all(isinstance(key, str) for key in named):
            raise self._invalid(self.folder / CONFIG, f"no list {which!r} of names")
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
            return TokenSpec(min(n_tokens, CATALOG_TOKENS), vocab_size, n_tokens)
        return TokenSpec(n_tokens, vocab_size)

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise self._invalid(path, str(error)) from error
        if not isinstance(content, dict):
            raise self._invalid(path, "not a JSON object")
        return content

    def _header(self, path: Path) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape) of the tensors of a safetensors file: u64 length, JSON header."""
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > path.stat().st_size:
                    raise ValueError("header longer than the file")
                header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
            if not all(isinstance(n, int) and n >= 0 for shape in shapes.values() for n in shape):
                raise ValueError("a tensor of no shape")
            return {name: (str(entry["dtype"]), shapes[name]) for name, entry in tensors.items()}
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._invalid(path, str(error)) from error

    def _invalid(self, path: Path, message: str) -> BadCheckpoint:
        fix = "the folder needs config.json, model.safetensors and codecs/<name>/{config.json,model.safetensors}"
        if self.manifest is not None:
            fix = f"albireo models pull {self.manifest.repository}@{self.manifest.revision}"
        return BadCheckpoint("checkpoint_invalid", message, file=str(path), fix=fix)


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


MINI = Path(__file__).parent.parent / "models" / "albireo-mini"
"""The checkpoint that is shipped with the package."""
