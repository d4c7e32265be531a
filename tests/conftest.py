"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

# Before a library reads them. What is tiny is done sooner by one thread than by several that wait for each other; and
# by default OpenMP and OpenBLAS wait by spinning, which takes the cores from one another and from every subprocess.
# Tests of real networks ask for `all_cores`.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

Interpret = Callable[[str, Mapping[str, tuple[str, tuple[Any, ...]]]], dict[str, Any]]
Compile = Callable[[str, Sequence[tuple[str, Mapping[str, str], Mapping[str, int]]]], list[int]]

INTERPRET = """
import sys
from importlib import import_module
import torch
module, calls, results = sys.argv[1:]
kernels = import_module(module)
with torch.inference_mode():
    torch.save({case: getattr(kernels, name)(*args) for case, (name, args) in torch.load(calls).items()}, results)
"""

COMPILE = """
import json, sys
from importlib import import_module
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sizes = []
for name, types, constants in json.loads(sys.argv[2]):
    kernel = getattr(import_module(sys.argv[1]), name)
    assert set(kernel.arg_names) == set(types) | set(constants), (name, kernel.arg_names)
    types = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    constants = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    for capability in (75, 90):
        built = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
        sizes.append(len(built.asm["cubin"]))
print(json.dumps(sizes))
"""


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real survey files; its absence is a failure, never a skip."""
    folder = os.environ.get("ALBIREO_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.fail("set ALBIREO_TEST_DATA to the folder with the real survey files (raw/ and eval/)")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def threads_are_given_back() -> Iterator[None]:
    """A command that is called in this process sets the threads of torch for all that comes after it."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="module")
def all_cores() -> None:
    """torch computes on all cores, as in a service."""
    from albireo.models.torch_engine import use_threads

    use_threads()


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Interpret:
    """(module, case -> (launcher, arguments)) -> case -> result: Triton's interpreter runs the kernels on a CPU.

    In a process of its own, because Triton decides when it is first imported whether it interprets.
    """

    def run(module: str, calls: Mapping[str, tuple[str, tuple[Any, ...]]]) -> dict[str, Any]:
        import torch

        folder = tmp_path_factory.mktemp("interpreted")
        torch.save(dict(calls), folder / "calls.pt")
        _python(INTERPRET, module, str(folder / "calls.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1")
        results: dict[str, Any] = torch.load(folder / "results.pt")
        return results

    return run


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """(module, (kernel, types of arguments, compile-time constants) ...) -> sizes of the machine code in bytes.

    For compute capabilities 7.5 and 9.0, without a GPU and without what an earlier run has left in a cache.
    """

    def run(module: str, kernels: Sequence[tuple[str, Mapping[str, str], Mapping[str, int]]]) -> list[int]:
        cache = str(tmp_path_factory.mktemp("compiled"))
        printed = _python(COMPILE, module, json.dumps(kernels), TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)
        sizes: list[int] = json.loads(printed)
        return sizes

    return run


def _python(program: str, *args: str, **environment: str) -> str:
    command = [sys.executable, "-c", program, *args]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@functools.cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class FakeHub:
    """A hub of models on this machine, as `huggingface_hub` speaks with one: metadata, files, ranges, refusals.

    repositories  hub id -> path -> content; its commit is a hash of them. JSON is not in LFS, everything else is
    denied        hub id -> (status, error code) of its files
    cut           path -> bytes after which the connection breaks, once
    hold          path -> bytes after which the hub falls silent, until `released`
    sizes         path -> size that is claimed
    requests      "METHOD /address" of every request, "GET address bytes=N-" if a range was asked for
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.denied: dict[str, tuple[int, str]] = {}
        self.cut: dict[str, int] = {}
        self.hold: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.requests: list[str] = []
        self.history: dict[str, dict[str, bytes]] = {}
        self.closed = False
        self.holding, self.released = threading.Event(), threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *about: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def commit(self, repository: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[repository].items()):
            digest.update(f"{path} {sha256(content)}".encode())
        return digest.hexdigest()

    def fetched(self) -> list[str]:
        """Paths of the files that were asked for since the last call; the list of requests is emptied."""
        paths = [
            line.split()[1].split("/resolve/")[1].partition("/")[2] for line in self.requests if "/resolve/" in line
        ]
        self.requests.clear()
        return paths

    def close(self) -> None:
        self.closed = True
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.closed:  # also to those who had a connection
            request.close_connection = True
            return
        address = urlsplit(request.path).path
        asked = request.headers.get("Range")
        self.requests.append(" ".join([request.command, address, *([asked] if asked else [])]))
        repository = re.match(r"/(?:api/models/)?([^/]+/[^/]+)/(?:revision|resolve)/([^/]+)(?:/(.+))?$", address)
        if repository is None or repository[1] not in self.repositories:
            self._refuse(request, 404, "RepoNotFound")
            return
        commit = self.commit(repository[1])
        self.history[commit] = dict(self.repositories[repository[1]])
        commit = commit if repository[2] == "main" else repository[2]
        if commit not in self.history:
            self._refuse(request, 404, "RevisionNotFound")
        elif repository[3] is None:
            self._send(request, json.dumps(self.about(repository[1], commit)).encode())
        elif repository[1] in self.denied:
            self._refuse(request, *self.denied[repository[1]])
        else:
            self._file(request, commit, repository[3], int(re.sub(r"\D", "", asked or "0")))

    def about(self, repository: str, commit: str) -> dict[str, Any]:
        """What the hub says of a model: its commit, its files with their sizes and sha256."""
        siblings = []
        for path, content in self.history[commit].items():
            size = self.sizes.get(path, len(content))
            lfs = {"sha256": sha256(content), "size": size, "pointerSize": 134}
            siblings.append({"rfilename": path, "size": size} | ({} if path.endswith(".json") else {"lfs": lfs}))
        return {"id": repository, "sha": commit, "siblings": siblings, "cardData": {"license": "mit"}}

    def _file(self, request: BaseHTTPRequestHandler, commit: str, path: str, start: int) -> None:
        content = self.history[commit][path]
        about = {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": commit}
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut, hold = self.cut.pop(path, None), self.hold.get(path)
        part = content[start : cut or hold]
        self._send(request, part, 206 if start else 200, len(content) - start, about)
        if cut:
            request.close_connection = True
        elif hold:
            request.wfile.flush()
            self.holding.set()
            self.released.wait(60)
            request.close_connection = True

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        content: bytes,
        status: int = 200,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(length or len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        self._send(request, b"{}", status, headers={"X-Error-Code": code} if code else {})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub of models, empty at first."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = FakeHub()
    yield made
    made.close()
