"""Contents from a hub: the files of a repository, fetched into a store that has every content once.

Authentication, mirrors and offline mode are those of `huggingface_hub` (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE), which
is imported when it is needed. Only safetensors and JSON are ever fetched.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from albireo.observations.errors import BadCheckpoint, NotFound, Unavailable
from albireo.tokenizers.checkpoint import CONFIG, LAYOUT, SHA256, WEIGHTS, FileFacts, sha256_of

Progress = Callable[[str, int, int], None]
"""Told the file at hand, and the bytes that are there and that are wanted, of all files together."""

REVISION = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
"""A branch, a tag or a commit, safe as a path."""


@dataclass(frozen=True)
class Remote:
    """A file of a repository at a commit; sha256 None if the hub does not state it (small files outside LFS)."""

    repository: str
    revision: str
    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Published:
    """The files of a checkpoint that a repository has at the commit `revision`."""

    repository: str
    revision: str
    license: str | None
    files: Mapping[str, Remote]


def ask(repository: str, revision: str, endpoint: str | None) -> Published:
    """What the hub has of a repository. BadCheckpoint if that is no checkpoint."""
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True, timeout=30.0)
    commit, siblings = info.sha or "", info.siblings or []
    files = {}
    for file in siblings:
        if LAYOUT.fullmatch(file.rfilename):
            stated = file.lfs.sha256 if file.lfs is not None else ""
            sha256 = stated if SHA256.fullmatch(stated) else None
            files[file.rfilename] = Remote(repository, commit, file.rfilename, file.size or 0, sha256)
    if not REVISION.fullmatch(commit) or CONFIG not in files or WEIGHTS not in files:
        raise BadCheckpoint(
            "checkpoint_invalid",
            f"the repository has no {CONFIG} and {WEIGHTS}",
            file=f"{repository}@{revision}",
            fix="a model in AION-1's layout, with its weights in one safetensors file; pickles are never read",
        )
    return Published(repository, commit, getattr(info.card_data, "license", None), files)


class Fetch:
    """Fetches files into the blobs of a cache, and tells of the bytes."""

    def __init__(self, place: Path, endpoint: str | None, progress: Progress) -> None:
        self.place = place
        self.endpoint = endpoint
        self.progress = progress

    def __call__(self, remotes: Iterable[Remote]) -> dict[str, FileFacts]:
        """Path -> FileFacts of the files, all of them on this disk now."""
        remotes = list(remotes)
        missing = [remote for remote in remotes if not self._have(remote)]
        facts = {r.path: FileFacts(r.size, r.sha256) for r in remotes if r.sha256 is not None and self._have(r)}
        self._total, self._done = sum(remote.size for remote in missing), 0
        begun = (self._unfinished(remote) for remote in missing)
        _check_room(self.place, self._total - sum(path.stat().st_size for path in begun if path.exists()))
        for remote in missing:
            facts[remote.path] = FileFacts(remote.size, self._one(remote))
        return facts

    def _have(self, remote: Remote) -> bool:
        if remote.sha256 is None:
            return False
        blob = blob_of(self.place, remote.sha256)
        return blob.exists() and blob.stat().st_size == remote.size

    def _one(self, remote: Remote) -> str:
        """sha256 of the file, which is among the blobs now."""
        if remote.sha256 is not None and (self._have(remote) or self._adopt(remote, remote.sha256)):
            self._tell(remote, remote.size)
            return remote.sha256
        unfinished = self._unfinished(remote)
        self._download(remote, unfinished)
        found = sha256_of(unfinished)
        if remote.sha256 not in (None, found):
            unfinished.unlink()
            raise BadCheckpoint(
                "checkpoint_invalid",
                "what came has another sha256 than the hub states",
                file=f"{remote.repository}/{remote.path}",
                fix="pull again; if it stays so, the hub or what lies between is broken",
            )
        unfinished.replace(blob_of(self.place, found))
        return found

    def _unfinished(self, remote: Remote) -> Path:
        """Where a file is until it is complete and checked."""
        address = f"{remote.repository}@{remote.revision}/{remote.path}".encode()
        return blob_of(self.place, f"{remote.sha256 or hashlib.sha256(address).hexdigest()}.partial")

    def _adopt(self, remote: Remote, sha256: str) -> bool:
        """Link to a file that other programs already have in the hub's own cache, if it is what it should be."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(remote.repository, remote.path, revision=remote.revision)
        if not isinstance(path, str) or sha256_of(Path(path)) != sha256:
            return False
        link(blob_of(self.place, sha256), Path(path))
        return True

    def _download(self, remote: Remote, path: Path) -> None:
        """Fetch a file, from where it was interrupted before. `hf_hub_download` would begin at its start again: it
        throws away what an interrupted process had got."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        if path.exists() and path.stat().st_size > remote.size:
            path.unlink()
        url = hf_hub_url(remote.repository, remote.path, revision=remote.revision, endpoint=self.endpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _explained(remote.repository, remote.revision), path.open("ab") as stream:
            begin = stream.tell()
            self._tell(remote, begin)
            bar: Any = partial(_Bar, partial(self._tell, remote))
            headers = build_hf_headers(library_name="albireo")
            http_get(url, stream, resume_size=begin, headers=headers, expected_size=remote.size, tqdm_class=bar)

    def _tell(self, remote: Remote, more: int) -> None:
        self._done += more
        self.progress(remote.path, self._done, self._total)


class _Bar:
    """What `http_get` wants of a progress bar."""

    def __init__(self, tell: Callable[[int], None], **about: object) -> None:
        self.update = tell

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def blob_of(place: Path, name: str) -> Path:
    """Where the content of this sha256 is, if it is."""
    return place / "blobs" / name


def link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, relative so that a cache may be moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target, path.parent))
    new.replace(path)


def write(path: Path, text: str) -> None:
    """Write a small file at once: whoever reads it sees all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def _check_room(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise Unavailable(
            "storage_unavailable",
            f"{needed / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free",
            file=str(place),
            fix="make room, set HF_HOME to another disk, or pull fewer modalities",
        )


@contextmanager
def storage(place: Path) -> Iterator[None]:
    """The cache, for one process at a time. Unavailable storage_unavailable if it cannot be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        fix = "make room or set HF_HOME to another disk, and pull again: what was fetched is kept"
        raise Unavailable("storage_unavailable", full, file=str(place), fix=fix) from error


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Errors of the hub and of the network as ours."""
    # HTTPError is the root of what its HTTP library raises, whichever library that is.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repository}@{revision}"
    try:
        yield
    except GatedRepoError as error:
        raise _gated(where) from error
    except RepositoryNotFoundError as error:
        fix = "check the name; for a private model set HF_TOKEN"
        raise NotFound("model_unknown", "the hub has no such repository", file=where, field="model", fix=fix) from error
    except RevisionNotFoundError as error:
        fix = "a branch, tag or commit of the repository"
        raise NotFound("model_unknown", "no such revision", file=where, field="revision", fix=fix) from error
    except OfflineModeIsEnabled as error:
        fix = "unset HF_HUB_OFFLINE, or copy the cache of a machine that has the model"
        raise Unavailable("hub_unreachable", "HF_HUB_OFFLINE is set", file=where, fix=fix) from error
    except HTTPError as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise _gated(where) from error
        reason = f"the hub answers {status}" if status else (str(error) or type(error).__name__).splitlines()[0]
        fix = "try again later: what was fetched is kept; HF_ENDPOINT names another hub"
        raise Unavailable("hub_unreachable", reason, file=where, fix=fix) from error
    except OSError as error:
        if error.errno is not None:  # of this machine
            raise
        fix = "pull again: what was fetched is kept"
        raise Unavailable("hub_unreachable", str(error), file=where, fix=fix) from error


def _gated(where: str) -> Unavailable:
    return Unavailable(
        "model_gated",
        "the hub gives this model only to accounts that it knows and that agreed to its terms",
        file=where,
        fix=f"agree on the model's page ({where.partition('@')[0]}), then set HF_TOKEN to a token of that account",
    )
