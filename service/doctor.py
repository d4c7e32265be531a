"""Every setting explained, and every thing that the service needs looked at, before or beside a running service.

    Finding    what one check found, and what to do about it
    explained  the settings: value, where it is from, what it means
    examine    all checks

A check that fails never keeps the others from being told. Nothing is changed, but for a probe file that is taken away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from albireo.observations.errors import AlbireoError
from albireo.service.settings import PREFIX, Settings

if TYPE_CHECKING:
    from albireo.service.core import Core

Status = Literal["ok", "warning", "error"]

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class Finding:
    """What one check found. `error`: something that is needed does not work; `fix` says what to do."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Checked:
    """What checks look at. `core` opens the model and the collections when they are first needed."""

    settings: Settings
    core: Core


Check = Callable[[Checked], Iterator[Finding]]


def explained(settings: Settings, said: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every setting: variable, value (passwords left out), where that is from, and what it means.

    said  names of those that the command line states
    """
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        told = _PASSWORD.sub("***@", value) if isinstance(value, str) else value
        rows.append(
            {
                "variable": PREFIX + name.upper(),
                "value": told if told is None or isinstance(told, bool | int | float) else str(told),
                "from": "command line"
                if name in said
                else "environment"
                if name in settings.model_fields_set
                else "default",
                "meaning": field.description,
            }
        )
    return rows


def checks(with_model: bool) -> list[tuple[str, Check]]:
    """The checks by name, in the order in which they are told."""
    from albireo.service import doctor_machine as machine
    from albireo.service import doctor_service as service

    return [
        ("installation", machine.installation),
        ("processor", machine.processor),
        ("gpu", machine.gpu),
        ("memory", machine.memory),
        ("open files", machine.open_files),
        ("data folder", machine.data_folder),
        ("ports", machine.ports),
        ("model", service.model),
        *([("embedding", service.embedding)] if with_model else []),
        ("heads", service.heads),
        ("collections", service.collections),
        ("redis", service.redis),
        ("keys", service.keys),
        ("tls", service.tls),
    ]


def examine(checked: Checked, with_model: bool = True) -> Iterator[Finding]:
    """What every check finds.

    with_model  also open the model and let it compute its known answer
    """
    for name, check in checks(with_model):
        try:
            yield from check(checked)
        except AlbireoError as error:
            yield Finding(name, "error", _told(error), error.fix)
        except Exception as error:  # whatever is broken in one is its finding, so that the others are still told
            yield Finding(name, "error", f"{type(error).__name__}: {error}", "see docs/install.md")


def _told(error: AlbireoError) -> str:
    where = ": ".join(part for part in (error.file, error.field) if part)
    return f"{where}: {error.message}" if where else error.message
