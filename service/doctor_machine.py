"""Checks of `albireo doctor` that look at the machine: what is installed, processor, memory, disk, ports."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from albireo.service.doctor import Checked, Finding
from albireo.service.settings import GRPC_PORT, Settings

TOLD = ("albireo", "numpy", "torch", "astropy", "pyarrow", "fastapi", "uvicorn")
"""Distributions whose versions are told; of all others only what is missing."""

OPTIONAL = (
    ("faiss", "search", "pip install 'albireo[cpu]', or 'albireo[gpu]'"),
    ("grpc", "gRPC", "pip install albireo again, or set ALBIREO_GRPC_PORT=0"),
)
"""Module -> what does not work without it, and what to do."""

BESIDE_MODEL = 1 << 30
"""Bytes of memory that the libraries and one batch take beside the weights."""

FREE_DISK = 1 << 30
"""Bytes below which a warning says so; SPARE_BYTES of readiness.py below which nothing is written."""

_REQUIRED = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*(?:>=\s*([\d.]+))?")


def installation(checked: Checked) -> Iterator[Finding]:
    """Python and the libraries."""
    versions, wrong = [f"Python {platform.python_version()}"], []
    for requirement in metadata.requires("albireo") or ():
        named = _REQUIRED.match(requirement)
        if named is None or "extra ==" in requirement:
            continue
        name, least = named[1], named[2]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if least is not None and _numbers(version) < _numbers(least):
            wrong.append(f"{name} {version} is older than {least}")
    for name in TOLD:
        if name not in " ".join(wrong):
            versions.append(f"{name} {metadata.version(name)}")
    if wrong:
        yield Finding("installation", "error", "; ".join(wrong), "pip install albireo again")
    else:
        yield Finding("installation", "ok", ", ".join(versions))
    for module, what, fix in OPTIONAL:
        if find_spec(module) is None:
            yield Finding("installation", "error", f"without {module} there is no {what}", fix)
    if checked.settings.otlp_endpoint is not None and find_spec("opentelemetry") is None:
        yield Finding("installation", "error", "traces need OpenTelemetry", "pip install 'albireo[otel]'")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def processor(checked: Checked) -> Iterator[Finding]:
    """Cores, instructions, and whether the settings fit them."""
    from albireo.models.cpu import available_cores, fast_bf16
    from albireo.models.devices import simd

    settings, cores = checked.settings, available_cores()
    threads = settings.threads or cores
    bf16 = "fast bfloat16" if fast_bf16() else "no fast bfloat16"
    detail = f"{cores} cores are granted of {os.cpu_count()}, the network uses {threads} threads; {simd()}, {bf16}"
    if threads > cores:
        yield Finding(
            "processor", "warning", f"{detail}: threads get in each other's way",
            f"set ALBIREO_THREADS to at most {cores}, or leave it out",
        )  # fmt: skip
    elif settings.device == "cpu" and "bfloat16" in (settings.dtype, settings.tokenizer_dtype) and not fast_bf16():
        yield Finding(
            "processor", "warning", f"{detail}: weights in bfloat16 are computed in float32",
            "float32 is exact and takes twice the memory",
        )  # fmt: skip
    else:
        yield Finding("processor", "ok", detail)


def gpu(checked: Checked) -> Iterator[Finding]:
    """Whether the device that is set is there, and one that is not set lies idle."""
    from albireo.models.devices import gpus

    device, found = checked.settings.device, gpus()
    names = ", ".join(one.name for one in found)
    if device == "cpu":
        if found:
            yield Finding("gpu", "warning", f"not used: {names}", "set ALBIREO_DEVICE=cuda")
        else:
            yield Finding("gpu", "ok", "none, and none is asked for")
        return
    number = int(device.partition(":")[2] or 0) if device.startswith("cuda") else None
    if number is None or number >= len(found):
        yield Finding(
            "gpu", "error", f"the device {device!r} is not there; GPUs that torch sees: {names or 'none'}",
            "set ALBIREO_DEVICE=cpu, or install a driver and a torch that fit the GPU",
        )  # fmt: skip
        return
    one = found[number]
    yield Finding("gpu", "ok", f"{one.name}, {_size(one.free)} of {_size(one.total)} are free")


def memory(checked: Checked) -> Iterator[Finding]:
    """Whether the model fits into what is free."""
    free = free_memory()
    if free is None:
        yield Finding("memory", "ok", "this system does not say how much is free")
        return
    folder = checked.settings.model_folder
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors") if "heads" not in file.parts)
    if checked.settings.dtype == "bfloat16":
        weights //= 2
    needed = weights + BESIDE_MODEL
    detail = f"{_size(free)} are free, the model needs about {_size(needed)}"
    if needed > free:
        yield Finding("memory", "error", detail, "use a smaller model, ALBIREO_DTYPE=bfloat16, or a larger machine")
    else:
        yield Finding("memory", "ok", detail)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still get: what the machine has, or what its cgroup grants; None if nothing says."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    free = [int(found[1]) << 10] if found else []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        names = ("memory.max", "memory.current")
        if "memory" in controllers.split(","):
            mount, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif controllers:
            continue
        folder = mount / path.lstrip("/")
        for one in (folder, *folder.parents):
            if one.is_relative_to(mount):
                most, used = (_read(one / name).strip() for name in names)
                if most.isdigit() and used.isdigit():
                    free.append(max(int(most) - int(used), 0))
    return min(free, default=None)


def open_files(checked: Checked) -> Iterator[Finding]:
    """Whether as many connections can be open as requests may be inside."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * checked.settings.max_requests + 256
    detail = f"this process may open {most}, {checked.settings.max_requests} requests at a time need about {needed}"
    if most != resource.RLIM_INFINITY and most < needed:
        yield Finding("open files", "warning", detail, f"ulimit -n {needed}, or a lower ALBIREO_MAX_REQUESTS")
    else:
        yield Finding("open files", "ok", detail)


def data_folder(checked: Checked) -> Iterator[Finding]:
    """Whether there can be written, and how much."""
    from albireo.service.readiness import SPARE_BYTES

    settings = checked.settings
    for name, folder in (("data folder", settings.data_folder), ("token cache", settings.token_cache)):
        if folder is None:
            continue
        folder = folder.expanduser()
        there = next(one for one in (folder, *folder.parents) if one.exists())
        try:
            with tempfile.TemporaryFile(dir=there) as stream:
                stream.write(b"probe")
                stream.flush()
        except OSError as error:
            fix = f"let this user write there, or set ALBIREO_{name.upper().replace(' ', '_')}"
            yield Finding(name, "error", f"{there}: {error}", fix)
            continue
        free = shutil.disk_usage(there).free
        detail = f"{folder}{'' if there == folder else ' (made when it is needed)'}, {_size(free)} are free"
        fix = "free some of the disk"
        if free < SPARE_BYTES:
            yield Finding(name, "error", detail, fix)
        elif free < FREE_DISK:
            yield Finding(name, "warning", detail, fix)
        else:
            yield Finding(name, "ok", detail)


def ports(checked: Checked) -> Iterator[Finding]:
    """Whether the addresses are free, or taken by this service itself."""
    settings = checked.settings
    grpc_port = GRPC_PORT if settings.grpc_port is None else settings.grpc_port
    running = _answers(settings)
    for name, port in (("port", settings.port), ("grpc port", grpc_port)):
        if not port:
            continue
        where = f"{settings.host}:{port}"
        trouble = _taken(settings.host, port)
        if trouble is None:
            yield Finding(name, "ok", f"{where} is free")
        elif running:
            yield Finding(name, "ok", f"{where}: Albireo is running there")
        else:
            variable = "ALBIREO_PORT" if name == "port" else "ALBIREO_GRPC_PORT"
            yield Finding(name, "error", f"{where}: {trouble}", f"set {variable} or ALBIREO_HOST, or end what is there")


def _taken(host: str, port: int) -> str | None:
    """Why nothing can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _answers(settings: Settings) -> bool:
    """Whether this service answers at its address."""
    import ssl
    import urllib.request

    scheme = "http" if settings.tls_certificate is None else "https"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    # Only whether anything of ours listens is asked: who it is needs no proof.
    context = ssl._create_unverified_context()
    try:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"{scheme}://{host}:{settings.port}/livez", timeout=2) as answer:
            return b'"alive"' in answer.read(200)
    except (OSError, ValueError):
        return False


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 1 << 30 else f"{n / 2**20:.0f} MiB"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
