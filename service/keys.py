"""API keys: long random texts, of which only hashes are kept.

    Key        who has a key, what it may do, and how much of it
    read_keys  the keys of a file
    new_key    a key that nobody has
    entry      the lines of a file that describe it

The file is TOML, or JSON of the same shape:

    [keys.pipeline]
    sha256 = "9f86d0..."
    role = "write"
    tokens_per_day = 5000000

A key has 256 random bits, so its plain SHA-256 cannot be turned round: no salt, no slow hash.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from albireo.observations.errors import BadInput, Unavailable

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

PREFIX = "albireo_"
"""Of every key, so that whoever finds one knows what it is."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Quota:
    """What a key may use; None = any amount. `burst` requests may come at once: those of a minute, if not stated."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    burst: int | None = None


QUOTAS = tuple(field.name for field in fields(Quota))


@dataclass(frozen=True)
class Key:
    """One key. `sha256` of its text, 64 hexadecimal digits."""

    name: str
    sha256: str
    role: Role
    quota: Quota = Quota()


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


def sha256_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def entry(key: Key) -> str:
    """The lines of a file of keys that describe one."""
    rows = [f"[keys.{_toml_name(key.name)}]", f'sha256 = "{key.sha256}"', f'role = "{key.role}"']
    rows += [f"{name} = {value}" for name in QUOTAS if (value := getattr(key.quota, name)) is not None]
    return "\n".join(rows)


def check_name(name: str) -> str:
    """The name, if it can be one. BadInput option_invalid."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            "option_invalid", f"{name!r} names no key", field="name", fix="1 to 64 letters, digits, and . _ - inside"
        )
    return name


def _toml_name(name: str) -> str:
    return f'"{name}"' if "." in name else name


def read_keys(path: Path) -> dict[str, Key]:
    """Hash -> key. Unavailable storage_unavailable if the file cannot be read, BadInput option_invalid if it is wrong.

    No error repeats what stands where a hash should be: it may be a key.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(
            "storage_unavailable", f"the file of API keys: {error}", file=str(path), fix="see ALBIREO_KEYS_FILE"
        ) from error
    try:
        content: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "the file", str(error).partition("\n")[0]) from None
    if not isinstance(content, dict) or content.keys() != {"keys"} or not isinstance(content["keys"], dict):
        raise _wrong(path, "the file", "it has one table `keys`, of one table a key")
    keys = [_key(path, name, row) for name, row in content["keys"].items()]
    found = {key.sha256: key for key in keys}
    if len(found) < len(keys):
        twice = next(key.name for key in keys if found[key.sha256] is not key)
        raise _wrong(path, twice, "another name has the same key")
    return found


def _key(path: Path, name: str, row: Any) -> Key:
    if not _NAME.fullmatch(name):
        raise _wrong(path, "a name", "names are 1 to 64 letters, digits, and . _ - inside")
    if not isinstance(row, Mapping):
        raise _wrong(path, name, "it is a table")
    if unknown := row.keys() - {"sha256", "role", *QUOTAS}:
        raise _wrong(path, name, f"there is no {min(unknown)!r}; known: sha256, role, {', '.join(QUOTAS)}")
    digest, role = row.get("sha256"), row.get("role")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _wrong(path, name, "sha256 is 64 hexadecimal digits, the hash of a key and not the key")
    if role not in ROLES:
        raise _wrong(path, name, f"role is one of {', '.join(ROLES)}")
    for quota in QUOTAS:
        value = row.get(quota, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(path, name, f"{quota} is a positive whole number")
    return Key(name, digest, role, Quota(**{quota: row[quota] for quota in QUOTAS if quota in row}))


def _wrong(path: Path, name: str, why: str) -> BadInput:
    return BadInput(
        "option_invalid",
        f"API keys: {name}: {why}",
        file=str(path),
        field=name,
        fix="`albireo keys new` prints what belongs into the file",
    )
