"""Checks of `albireo doctor` that look at what the service works with: model, heads, collections, Redis, keys, TLS."""

from __future__ import annotations

import ipaddress
import ssl
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from albireo.observations.errors import AlbireoError, BadInput
from albireo.service.doctor import Checked, Finding
from albireo.service.tls import Tls

PATIENCE = 600.0
"""Seconds that the model gets to be opened and to compute its known answer."""

READ_AT_MOST = 1 << 30
"""Bytes of vectors of a collection that is read as a whole, so that its checksums are looked at."""

EXPIRES_SOON = 30.0
"""Days before the end of a certificate from which on a warning says so."""


def model(checked: Checked) -> Iterator[Finding]:
    """Whether the model is on this machine, and can be understood."""
    from albireo.tokenizers.checkpoint import Checkpoint, Manifest

    folder = checked.settings.model_folder
    checkpoint = Checkpoint(folder, checked.settings.preprocessing)
    detail = f"{checkpoint.name} in {folder}, reads {len(checkpoint.inputs)} modalities"
    manifest = Manifest.read(folder)
    lacks = (
        [] if manifest is None else [path for path, facts in manifest.files.items() if _differs(folder / path, facts)]
    )
    lacks = [path for path in lacks if not path.startswith("codecs/")]  # codecs are pulled as they are needed
    if lacks:
        yield Finding(
            "model", "error", f"{folder}: {', '.join(lacks)} not as published", f"albireo models pull {checkpoint.name}"
        )
    else:
        yield Finding("model", "ok", detail)


def _differs(path: Path, facts: Any) -> bool:
    return not path.is_file() or path.stat().st_size != facts.size


def embedding(checked: Checked) -> Iterator[Finding]:
    """Whether the model computes the answer that is known, and searching finds what is known to be there."""
    from albireo.index.collection import Collections
    from albireo.service.core import Core
    from albireo.service.readiness import KnownAnswer, Readiness

    settings = checked.settings
    with tempfile.TemporaryDirectory(prefix="albireo-doctor-") as folder:
        beside = Path(folder)  # a file of collections is made where there is none: not among the user's
        core = Core(lambda: checked.core.engine, lambda: Collections(beside / "collections.sqlite"))
        readiness = Readiness(
            core,
            beside,
            lambda: KnownAnswer.read(settings.model_folder) if settings.preprocessing is None else None,
            wait_seconds=PATIENCE,
        )
        report = readiness.report()
        core.close()
    if not report.capabilities:
        yield Finding(
            "embedding", "error", f"no answer after {PATIENCE:.0f} s", "use a smaller model or a faster machine"
        )
        return
    embed, search = report.capabilities["embed"], report.capabilities["search"]
    if embed["ok"]:
        yield Finding("embedding", "ok", f"{embed['detail']}, {embed['ms'] / 1e3:.1f} s with opening the model")
    else:
        yield Finding("embedding", "error", embed["detail"], "albireo models verify MODEL, or pull the model again")
    if search["ok"]:
        yield Finding("search", "ok", "a search for known vectors found them")
    else:
        yield Finding("search", "error", search["detail"], "pip install 'albireo[cpu]', or 'albireo[gpu]'")


def heads(checked: Checked) -> Iterator[Finding]:
    """Whether every head can be opened."""
    shelf = checked.core.shelf
    good = []
    for one in shelf.all():
        if isinstance(one, AlbireoError):
            yield Finding("heads", "error", str(one), "fit it again, or take its file away")
        else:
            good.append(one.name)
    for origin, path in shelf.hidden():
        yield Finding(
            "heads", "warning", f"{path} ({origin}) has the name of another head, which is taken", "rename it"
        )
    yield Finding("heads", "ok", ", ".join(good))


def collections(checked: Checked) -> Iterator[Finding]:
    """Whether the file is whole, and every row of it what was written."""
    path = checked.settings.collections_file
    if not path.exists():
        yield Finding("collections", "ok", f"{path} is made when the first collection is")
        return
    known = checked.core.collections
    told = []
    for name in known.names():
        collection = known.get(name)
        n = collection.count
        if not n:
            told.append(f"{name} (empty)")
        elif n * collection.dim * 4 > READ_AT_MOST:
            told.append(f"{name} ({n} objects, too many to be read here)")
        else:
            # A search reads every row, and so looks at its checksum.
            collection.search(np.ones((1, collection.dim), np.float32), 1, space=collection.space)
            told.append(f"{name} ({n} objects, every checksum right)")
    yield Finding("collections", "ok", f"{path}: {', '.join(told) or 'no collection'}")


def redis(checked: Checked) -> Iterator[Finding]:
    """Whether Redis answers, soon enough, and keeps what it is given."""
    settings = checked.settings
    if settings.redis_url is None:
        yield Finding("redis", "ok", "not set")
        return
    from redis import Redis, RedisError

    needed = bool(settings.remote_pools)
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.ping()
            began = time.perf_counter()
            client.ping()
            milliseconds = (time.perf_counter() - began) * 1e3
            about: Any = client.info()
    except (RedisError, OSError, ValueError) as error:
        yield Finding(
            "redis", "error" if needed else "warning", str(error),
            "start Redis, or set ALBIREO_REDIS_URL right" + ("" if needed else "; until then quotas are counted here"),
        )  # fmt: skip
        return
    detail = f"Redis {about['redis_version']} answers in {milliseconds:.1f} ms"
    policy = about.get("maxmemory_policy", "noeviction")
    if about.get("maxmemory") and policy != "noeviction":
        yield Finding(
            "redis", "warning", f"{detail}, but throws things away when its memory is full ({policy})",
            "set its maxmemory-policy to noeviction",
        )  # fmt: skip
    else:
        yield Finding("redis", "ok", detail)


def keys(checked: Checked) -> Iterator[Finding]:
    """Whether the file of keys is right, and whether there should be one."""
    from albireo.service.keys import read_keys

    settings = checked.settings
    if settings.keys_file is None:
        if _is_local(settings.host):
            yield Finding("keys", "ok", "none are asked for, and only this machine can reach the service")
        else:
            yield Finding(
                "keys", "warning", f"whoever reaches {settings.host} may do everything",
                "`albireo keys new`, and set ALBIREO_KEYS_FILE",
            )  # fmt: skip
        return
    path = settings.keys_file.expanduser()
    known = read_keys(path).values()
    if not known:
        yield Finding("keys", "warning", f"{path} has no key: nobody may do anything", "`albireo keys new`")
    elif path.stat().st_mode & stat.S_IWOTH:
        yield Finding("keys", "warning", f"everybody may write {path}", f"chmod o-w {path}")
    else:
        yield Finding("keys", "ok", f"{path}: {len(known)} keys")
    if settings.tls_certificate is None and not _is_local(settings.host):
        yield Finding(
            "keys", "warning", "keys travel without encryption", "set ALBIREO_TLS_CERTIFICATE, or use a proxy"
        )


def tls(checked: Checked) -> Iterator[Finding]:
    """Whether the certificate and its key fit together and are valid now."""
    made = Tls.of(checked.settings)
    if made is None:
        yield Finding("tls", "ok", "not set")
        return
    ends = expiry(made)
    days = (ends - time.time()) / 86_400
    when = time.strftime("%Y-%m-%d", time.gmtime(ends))
    renew = "renew the certificate"
    if days < EXPIRES_SOON:
        yield Finding("tls", "warning", f"{made.certificate} is valid until {when}", renew)
    else:
        yield Finding("tls", "ok", f"{made.certificate} is valid until {when}")
    if made.key.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield Finding("tls", "warning", f"everybody may read {made.key}", f"chmod o= {made.key}")


def expiry(files: Tls) -> float:
    """Until when a certificate is valid, seconds since 1970. BadInput if it is not valid now.

    Server and client shake hands in memory: the client trusts this very certificate, so that only its dates count.
    """
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.certificate, files.key)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_side.load_verify_locations(files.certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(there, back)
    server = server_side.wrap_bio(back, there, server_side=True)
    try:
        for _ in range(4):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise BadInput(
            "option_invalid", f"the certificate is not valid: {error.verify_message}", file=str(files.certificate),
            field="ALBIREO_TLS_CERTIFICATE", fix="renew the certificate",
        ) from error  # fmt: skip
    about = client.getpeercert()
    assert about is not None
    return ssl.cert_time_to_seconds(str(about["notAfter"]))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
