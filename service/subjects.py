"""What a request or a command is about: objects, each read or with the reason why it could not be.

Subject        one object on its way to an embedding
from_reports   the objects of files
as_one         several files of one object
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.observation import Observation, Payload, merge
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FileReport, read_files
from albireo.observations.source import Source


@dataclass(frozen=True)
class Subject:
    """One object: `observation` or `error`, never both. `file` names its files; `warnings` do not stop it."""

    id: str | None
    file: str | None
    observation: Observation | None = None
    error: AlbireoError | None = None
    warnings: tuple[AlbireoError, ...] = ()
    sha256: str | None = None

    @property
    def ra(self) -> float | None:
        """Degrees ICRS; None if it is not stated, or the object could not be read."""
        return self.observation.ra if self.observation else None

    @property
    def dec(self) -> float | None:
        """Degrees ICRS, like `ra`."""
        return self.observation.dec if self.observation else None

    def failed(self, error: AlbireoError) -> Subject:
        """The same object, with the reason why it goes no further."""
        return replace(self, observation=None, error=error)


def read_opened(
    names: Sequence[str], opened: Sequence[Source | AlbireoError], options: ReadOptions
) -> list[FileReport]:
    """Read files together; one report each, in order, also for those that are an error already."""
    read = iter(read_files([source for source in opened if isinstance(source, Source)], options))
    return [
        next(read) if isinstance(source, Source) else FileReport(name, None, error=source.at(file=name))
        for name, source in zip(names, opened, strict=True)
    ]


def from_reports(reports: Iterable[FileReport]) -> list[Subject]:
    """One subject per object, in file order; a file that could not be read is one failed subject.

    A file that completed another one (`companion_of`) has no subject of its own.
    """
    subjects = []
    for report in reports:
        if report.error is not None:
            subjects.append(Subject(None, report.file, error=report.error))
        for item in report.items:
            subjects.append(
                Subject(item.id, report.file, item, sha256=_sha256(item))
                if isinstance(item, Observation)
                else Subject(None, report.file, error=item)
            )
    return subjects


def as_one(subjects: Sequence[Subject], id: str | None = None) -> Subject:
    """Several files of one object as one subject, called `id`, or by the id that they share.

    Fails as a whole when a file fails: an embedding of the rest would not be what was asked for.
    """
    names = " + ".join(dict.fromkeys(s.file for s in subjects if s.file)) or None
    one = Subject(id or next((s.id for s in subjects if s.id), None), names)
    bad = next((s.error for s in subjects if s.error is not None), None)
    if bad is not None:
        return one.failed(bad)
    parts = [s.observation for s in subjects if s.observation is not None]
    if not parts:
        return one.failed(BadInput("empty_file", "no object was given", field="inputs"))
    try:
        whole = merge(*(replace(part, id=id) if id is not None else part for part in parts))
    except AlbireoError as error:
        return one.failed(error.at(file=names))
    hashes = " + ".join(dict.fromkeys(s.sha256 for s in subjects if s.sha256)) or None
    warnings = tuple(warning for s in subjects for warning in s.warnings)
    return Subject(whole.id, names, whole, warnings=warnings, sha256=hashes)


def join(subjects: Sequence[Subject]) -> list[Subject]:
    """One subject per id, with all that the files say of it, where its first part stood.

    A part that only repeats what is there adds nothing; one that says something else of the same modality fails alone.
    """
    wholes: dict[str, int] = {}
    out: list[Subject] = []
    for subject in subjects:
        if subject.observation is None or subject.id is None or subject.id not in wholes:
            if subject.observation is not None and subject.id is not None:
                wholes[subject.id] = len(out)
            out.append(subject)
            continue
        at = wholes[subject.id]
        together = as_one([out[at], subject])
        if together.error is None:
            out[at] = together
        elif not _repeats(subject.observation, out[at].observation):
            out.append(subject.failed(together.error))
    return out


def _repeats(part: Observation, whole: Observation | None) -> bool:
    """True if `whole` has every payload of `part`, bit for bit."""
    return whole is not None and all(
        key in whole.data and _content(payload) == _content(whole.data[key]) for key, payload in part.data.items()
    )


def _content(payload: Payload) -> tuple[object, ...]:
    """A payload as values that can be compared; arrays by their bytes, so that NaN equals NaN."""
    values = (getattr(payload, field.name) for field in fields(payload))
    return (
        type(payload),
        *((v.shape, v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else repr(v) for v in values),
    )


def _sha256(observation: Observation) -> str | None:
    hashes = dict.fromkeys(p.sha256 for p in observation.provenance.values() if p.sha256)
    return " + ".join(hashes) or None
