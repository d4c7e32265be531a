"""Models from a hub: fetched once, whole or for some modalities only, and opened from this disk ever after.

    resolve   a folder, or the name of a model that is on this disk, as a folder; never asks the network
    pull      fetches what is missing of a model; what was interrupted goes on where it stopped
    pulled    what is on this disk

In the cache every content is kept once, and a model is a folder of links to contents:

    blobs/<sha256>                            a file's content; <...>.partial while it is fetched
    <owner>--<name>/<commit>/                 a checkpoint folder with its manifest
    <owner>--<name>/refs/<branch or tag>      the commit that it was when it was pulled
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from albireo.observations.errors import BadCheckpoint, BadInput, NotFound, Unavailable
from albireo.observations.modalities import MODALITIES, modality
from albireo.tokenizers.checkpoint import (
    CONFIG,
    MANIFEST,
    MINI,
    TOKENIZED_KINDS,
    WEIGHTS,
    Checkpoint,
    FileFacts,
    Manifest,
)
from albireo.tokenizers.fetching import REVISION, Fetch, Progress, Published, Remote, ask, blob_of, link, storage, write

CODECS_REPOSITORY = "polymathic-ai/aion-base"
"""Where the codecs of a model are whose own repository has none: all sizes of AION-1 share those of the base model."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Size:
    """A published size of AION-1 (arXiv 2510.17960); `parameters` as the paper rounds them."""

    repository: str
    dim: int
    depth: int
    heads: int
    parameters: int

    @property
    def config(self) -> dict[str, Any]:
        """The part of `config.json` that shapes the transformer: as deep in the decoder as in the encoder, SwiGLU,
        queries and keys normalised, no biases."""
        biases = dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias", "norm_bias"), False)
        depths = {"encoder_depth": self.depth, "decoder_depth": self.depth}
        block = {"num_heads": self.heads, "mlp_ratio": 4.0, "act_layer": "SiLU", "gated_mlp": True, "qk_norm": True}
        return {"dim": self.dim, **depths, **block, **biases}


SIZES: dict[str, Size] = {
    "aion-base": Size("polymathic-ai/aion-base", 768, 12, 12, 300_000_000),
    "aion-large": Size("polymathic-ai/aion-large", 1024, 24, 16, 800_000_000),
    "aion-xlarge": Size("polymathic-ai/aion-xlarge", 2048, 24, 32, 3_100_000_000),
}
"""Short name -> published size; the names are accepted wherever a model is named."""


@dataclass(frozen=True)
class Pulled:
    """A model on this disk: commit `revision` of `repository`, and the branches and tags that it was when pulled."""

    repository: str
    revision: str
    names: tuple[str, ...]
    folder: Path


def resolve(model: str | Path, cache: Path | None = None) -> Path:
    """The folder of a model: the shipped "albireo-mini", a folder, a name of SIZES, or `owner/name[@revision]`.

    A known name goes before a folder (write ./aion-base for a folder of that name), a folder before a hub id.
    NotFound model_unknown, or model_not_pulled with the command that fetches it.
    """
    name = str(model)
    if name == MINI.name:
        return MINI
    folder = Path(name).expanduser()
    if name.partition("@")[0] not in SIZES and folder.is_dir():
        return folder
    repository, revision = reference(name)
    found = _find(home(cache), repository, revision)
    if found is None:
        raise NotFound(
            "model_not_pulled",
            f"{name} is no folder, and no model of this machine",
            field="model",
            fix=f"albireo models pull {name}",
        )
    return found


def reference(model: str, revision: str | None = None) -> tuple[str, str]:
    """(hub id, branch, tag or commit) of a short name or `owner/name[@revision]`; "main" if none is stated."""
    name, _, stated = model.partition("@")
    repository = SIZES[name].repository if name in SIZES else name
    revision = revision or stated or "main"
    if not _HUB_ID.fullmatch(repository) or not REVISION.fullmatch(revision):
        known = ", ".join((MINI.name, *SIZES))
        raise NotFound(
            "model_unknown",
            f"{model!r} is neither a folder nor the name of a model",
            field="model",
            fix=f"a checkpoint folder, one of {known}, or owner/name of a hub",
        )
    return repository, revision


def home(cache: Path | None = None) -> Path:
    """The folder of the pulled models: `cache`, else `albireo` among the assets of huggingface_hub (see HF_HOME)."""
    if cache is not None:
        return cache
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "albireo"


def pulled(cache: Path | None = None) -> list[Pulled]:
    """Every model on this disk, by repository and revision."""
    found = []
    for path in sorted(home(cache).glob(f"*--*/*/{MANIFEST}")):
        manifest, refs = Manifest.read(path.parent), path.parent.parent / "refs"
        assert manifest is not None
        names = (ref for ref in sorted(refs.rglob("*")) if ref.is_file() and ref.read_text() == manifest.revision)
        stated = tuple(ref.relative_to(refs).as_posix() for ref in names)
        found.append(Pulled(manifest.repository, manifest.revision, stated, path.parent))
    return found


def pull(
    model: str,
    modalities: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    endpoint: str | None = None,
    progress: Progress = lambda file, done, total: None,
) -> Path:
    """Fetch what is missing of a model for these modalities (None: all that it reads). Its folder, ready to open.

    Every content is checked against its sha256. Without a network a model that is there already is enough.
    NotFound (no such model), Unavailable (gated, no network, no room), BadCheckpoint (of another layout),
    BadInput (a modality that it does not read).
    """
    repository, revision = reference(model, revision)
    place = home(cache)
    keys = None if modalities is None else [modality(name).key for name in modalities]
    try:
        published = ask(repository, revision, endpoint)
    except Unavailable as error:
        folder = _find(place, repository, revision)
        if error.code == "hub_unreachable" and folder is not None and _is_whole(folder, keys):
            return folder
        raise
    folder = _folder(place, repository, published.revision)
    if _find(place, repository, revision) == folder and _is_whole(folder, keys):
        return folder  # Nothing is written: the cache may be read-only.
    with storage(place):
        files, codecs_from = _with_codecs(published, Manifest.read(folder), endpoint)
        fetch = Fetch(place, endpoint, progress)
        config = fetch([files[CONFIG]])[CONFIG]
        files[CONFIG] = replace(files[CONFIG], sha256=config.sha256)
        wanted = _wanted(_domains(place, config), keys, files, repository)
        facts = fetch(remote for path, remote in files.items() if path in wanted or remote.sha256 is None)
        stated = {path: FileFacts(remote.size, remote.sha256) for path, remote in files.items() if remote.sha256}
        manifest = Manifest(repository, published.revision, codecs_from, published.license, stated | facts)
        _lay_out(folder, manifest, place)
        if revision != published.revision:
            write(folder.parent / "refs" / revision, published.revision)
    Checkpoint(folder)
    return folder


def _find(place: Path, repository: str, revision: str) -> Path | None:
    """The folder of a model on this disk, None if it was not pulled."""
    ref = _folder(place, repository, "refs") / revision
    folder = _folder(place, repository, ref.read_text() if ref.is_file() else revision)
    return folder if (folder / MANIFEST).is_file() and (folder / WEIGHTS).exists() else None


def _folder(place: Path, repository: str, revision: str) -> Path:
    return place / repository.replace("/", "--") / revision


def _is_whole(folder: Path, keys: Sequence[str] | None) -> bool:
    """True if nothing has to be fetched for these modalities, and no file has another size than it should."""
    manifest = Manifest.read(folder)
    for path, facts in manifest.files.items() if manifest else ():
        there = (folder / path).exists()
        if (folder / path).stat().st_size != facts.size if there else not path.endswith(f"/{WEIGHTS}"):
            return False
    inputs = Checkpoint(folder).inputs
    return not inputs.elsewhere if keys is None else inputs.keys() >= set(keys)


def _with_codecs(
    published: Published, known: Manifest | None, endpoint: str | None
) -> tuple[dict[str, Remote], tuple[str, str]]:
    """All files of a checkpoint, and where its codecs are from. Codecs that it was pulled with stay what they were."""
    files = dict(published.files)
    source = (published.repository, published.revision)
    if not any(path.startswith("codecs/") for path in files) and published.repository != CODECS_REPOSITORY:
        repository, revision = known.codecs_from if known else (CODECS_REPOSITORY, "main")
        codecs = ask(repository, revision, endpoint)
        source = (codecs.repository, codecs.revision)
        files |= {path: remote for path, remote in codecs.files.items() if path.startswith("codecs/")}
    if known is not None:
        # A commit never changes: what was once hashed need not be fetched again to know its hash.
        files = {p: replace(r, sha256=known.files[p].sha256) if p in known.files else r for p, r in files.items()}
    return files, source


def _domains(place: Path, config: FileFacts) -> list[str]:
    """Token keys that the encoder reads and something here tokenizes."""
    path = blob_of(place, config.sha256)
    try:
        named = json.loads(path.read_text())["domains_in"]
        return [key for key in MODALITIES if key in named and MODALITIES[key].kind in TOKENIZED_KINDS]
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint("checkpoint_invalid", f"{error!r}", file=CONFIG, field="domains_in") from error


def _wanted(
    readable: Sequence[str], keys: Sequence[str] | None, files: Mapping[str, Remote], repository: str
) -> set[str]:
    """Paths of the files needed. BadInput for a modality that was asked for and cannot be read."""
    codecs = {key: f"codecs/{MODALITIES[key].codec}/{WEIGHTS}" for key in readable}
    available = [key for key in readable if codecs[key] in files]
    for key in keys or ():
        if key not in available:
            raise BadInput(
                "modality_not_in_checkpoint",
                f"{repository} does not read {MODALITIES[key].name}",
                field=MODALITIES[key].name,
                fix="it reads " + ", ".join(MODALITIES[known].name for known in available),
            )
    configs = {path for path in files if path.endswith(CONFIG)}
    return {WEIGHTS} | configs | {codecs[key] for key in (available if keys is None else keys)}


def _lay_out(folder: Path, manifest: Manifest, place: Path) -> None:
    """The folder of a checkpoint: links to what is there of its files, and its manifest."""
    for path, facts in manifest.files.items():
        if blob_of(place, facts.sha256).exists():
            link(folder / path, blob_of(place, facts.sha256))
    write(folder / MANIFEST, manifest.text())
