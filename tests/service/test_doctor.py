"""`albireo doctor`: settings explained, and each thing that the service needs found right or wrong."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from albireo.index.collection import Collections, StoredObject
from albireo.observations.errors import BadInput
from albireo.service import doctor_machine, doctor_service
from albireo.service.cli import app as cli
from albireo.service.core import Core
from albireo.service.doctor import Checked, Finding, checks, examine, explained
from albireo.service.keys import Key, entry, new_key, sha256_of
from albireo.service.readiness import answer
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf
from albireo.service.tls import Tls
from albireo.tokenizers.checkpoint import MINI
from tests.service.certificates import make_certificates


@pytest.fixture
def mini() -> Path:
    """The folder of the checkpoint that is shipped."""
    return Settings().model_folder


@pytest.fixture
def checked(core: Core, settings: Settings) -> Checked:
    """Settings of a toy model, and a core that has it open."""
    return Checked(settings, core)


def found(check: Callable[[Checked], Iterator[Finding]], checked: Checked, **changed: Any) -> list[Finding]:
    return list(check(Checked(checked.settings.model_copy(update=changed), checked.core)))


def statuses(findings: list[Finding]) -> list[str]:
    assert all(finding.fix for finding in findings if finding.status != "ok"), findings
    return [finding.status for finding in findings]


# Settings


def test_every_setting_is_explained(settings: Settings) -> None:
    rows = {row["variable"]: row for row in explained(settings, ["model"])}
    assert rows.keys() == {f"ALBIREO_{name.upper()}" for name in Settings.model_fields}
    assert all(row["meaning"] for row in rows.values())
    assert rows["ALBIREO_MODEL"]["from"] == "command line"
    assert (rows["ALBIREO_MAX_ITEMS"]["value"], rows["ALBIREO_MAX_ITEMS"]["from"]) == (50, "environment")
    assert rows["ALBIREO_PORT"]["from"] == "default"


def test_passwords_are_not_told() -> None:
    rows = explained(Settings(redis_url="redis://user:hunter2@queue:6379/0"))
    assert "hunter2" not in json.dumps(rows)
    assert {row["variable"]: row["value"] for row in rows}["ALBIREO_REDIS_URL"] == "redis://***@queue:6379/0"


# The command


def run(core: Core, *words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["doctor", *words], obj=lambda settings: core, env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "ALBIREO_DATA_FOLDER": str(tmp_path / "data"),
        "ALBIREO_PORT": str(free_port()),
        "ALBIREO_GRPC_PORT": "0",
    }


def test_the_command_on_a_good_machine(core: Core, environment: dict[str, str]) -> None:
    code, text = run(core, "--quick", "--json", env=environment)
    told = json.loads(text)
    assert (code, told["ok"]) == (0, True), told["checks"]
    assert {row["name"] for row in told["checks"]} >= {name for name, _ in checks(False)} - {"ports"}
    assert not any(row["status"] == "error" for row in told["checks"])
    code, text = run(core, "--quick", env=environment)
    assert code == 0
    assert f"ALBIREO_PORT = {environment['ALBIREO_PORT']}  (environment)" in text
    assert "0 errors" in text


def test_the_command_on_a_broken_machine(core: Core, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("[keys]\na = 1")
    code, text = run(core, "--quick", env=environment | {"ALBIREO_KEYS_FILE": str(tmp_path / "keys.toml")})
    assert code == 1
    assert "ERROR" in text
    assert "to do: `albireo keys new`" in text
    assert "1 error," in text


def test_settings_that_are_wrong(core: Core) -> None:
    code, text = run(core, "--json", env={"ALBIREO_PORT": "many"})
    told = json.loads(text)
    assert (code, told["ok"]) == (1, False)
    assert told["checks"][0]["detail"].startswith("ALBIREO_PORT: ")


def test_nothing_is_left_behind(core: Core, environment: dict[str, str], tmp_path: Path, engine) -> None:
    before = set(tmp_path.rglob("*"))
    findings = list(examine(Checked(Settings(data_folder=tmp_path / "data", model=str(tmp_path)), core)))
    assert "embedding" in {finding.name for finding in findings}
    assert set(tmp_path.rglob("*")) == before


def test_a_check_that_breaks_keeps_no_other_from_being_told(checked: Checked) -> None:
    def broken() -> Shelf:
        raise RuntimeError("no shelf")

    core = Core(lambda: checked.core.engine, lambda: checked.core.collections, shelf=broken)
    findings = {finding.name: finding for finding in examine(Checked(checked.settings, core), with_model=False)}
    assert findings["heads"].status == "error"
    assert "RuntimeError: no shelf" in findings["heads"].detail
    assert findings["tls"].status == "ok"


# The machine


def test_installation(checked: Checked) -> None:
    (first, *more) = found(doctor_machine.installation, checked)
    assert first.status == "ok"
    assert "numpy" in first.detail
    assert more == []


def test_processor(checked: Checked) -> None:
    assert statuses(found(doctor_machine.processor, checked, threads=1)) == ["ok"]
    (warned,) = found(doctor_machine.processor, checked, threads=1000)
    assert warned.status == "warning"
    assert "ALBIREO_THREADS" in str(warned.fix)


def test_a_gpu_that_is_not_there(checked: Checked) -> None:
    for device in ("cuda:7", "mps", "tpu"):
        (missing,) = found(doctor_machine.gpu, checked, device=device)
        assert missing.status == "error"
        assert device in missing.detail


def test_memory(checked: Checked, mini: Path) -> None:
    assert statuses(found(doctor_machine.memory, checked, model=MINI.name)) == ["ok"]


def test_a_model_that_does_not_fit(checked: Checked, tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.truncate(1 << 42)  # takes no disk
    (large,) = found(doctor_machine.memory, checked)
    assert large.status == "error"
    assert "4097.0 GiB" in large.detail


def test_what_a_cgroup_grants(tmp_path: Path) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/container/memory.max": "max\n",
        "sys/fs/cgroup/pod/container/memory.current": "1000\n",
        "sys/fs/cgroup/pod/memory.max": "4294967296\n",
        "sys/fs/cgroup/pod/memory.current": "1073741824\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor_machine.free_memory(tmp_path) == 3 << 30
    assert doctor_machine.free_memory(tmp_path / "nowhere") is None


def test_open_files(checked: Checked) -> None:
    assert statuses(found(doctor_machine.open_files, checked, max_requests=1)) == ["ok"]
    assert statuses(found(doctor_machine.open_files, checked, max_requests=10**9)) == ["warning"]


def test_a_data_folder_that_cannot_be_made(checked: Checked, tmp_path: Path) -> None:
    assert statuses(found(doctor_machine.data_folder, checked)) == ["ok"]
    (tmp_path / "file").write_text("")
    (wrong,) = found(doctor_machine.data_folder, checked, data_folder=tmp_path / "file" / "data")
    assert wrong.status == "error"
    both = found(doctor_machine.data_folder, checked, token_cache=tmp_path / "tokens")
    assert [finding.name for finding in both] == ["data folder", "token cache"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """A server that answers every GET so; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *about: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_ports(checked: Checked) -> None:
    free, taken = free_port(), free_port()
    assert statuses(found(doctor_machine.ports, checked, port=free, grpc_port=0)) == ["ok"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()
        both = found(doctor_machine.ports, checked, port=free, grpc_port=taken)
        assert [(finding.name, finding.status) for finding in both] == [("port", "ok"), ("grpc port", "error")]
        assert "ALBIREO_GRPC_PORT" in str(both[1].fix)
    with listening(b'{"status": "alive"}') as port:
        (running,) = found(doctor_machine.ports, checked, port=port, grpc_port=0)
        assert (running.status, "is running there" in running.detail) == ("ok", True)
    with listening(b"hello") as port:
        assert statuses(found(doctor_machine.ports, checked, port=port, grpc_port=0)) == ["error"]
    assert statuses(found(doctor_machine.ports, checked, host="192.0.2.1", port=free, grpc_port=0)) == ["error"]


# What the service works with


def test_model(checked: Checked, mini: Path, tmp_path: Path) -> None:
    (good,) = found(doctor_service.model, checked, model=MINI.name)
    assert good.status == "ok"
    findings = list(examine(Checked(checked.settings.model_copy(update={"model": "no-such"}), checked.core), False))
    missing = next(finding for finding in findings if finding.name == "model")
    assert missing.status == "error"
    assert missing.fix


def test_the_known_answer(checked: Checked, engine, tmp_path: Path) -> None:
    answer(engine).write(tmp_path)
    assert statuses(found(doctor_service.embedding, checked)) == ["ok", "ok"]
    engine.shift = 0.5
    embedding, search = found(doctor_service.embedding, checked)
    assert (embedding.status, search.status) == ("error", "ok")
    assert "the stored answer" in embedding.detail
    assert embedding.fix


def test_heads(checked: Checked, settings: Settings) -> None:
    assert statuses(found(doctor_service.heads, checked)) == ["ok"]
    for folder in settings.head_folders.values():
        folder.mkdir(parents=True)
        (folder / "broken.safetensors").write_bytes(b"this is no head")
    assert statuses(found(doctor_service.heads, checked)) == ["error", "warning", "ok"]


def test_collections(checked: Checked, core: Core, settings: Settings) -> None:
    (none,) = found(doctor_service.collections, checked)
    assert "is made when" in none.detail
    assert not settings.collections_file.exists()
    made = core.collections.create("c", "toy:mean", 4)
    made.upsert([StoredObject(str(n), np.full(4, n + 1, np.float32)) for n in range(3)])
    core.collections.create("empty", "toy:mean", 4)
    (good,) = found(doctor_service.collections, checked)
    assert "c (3 objects, every checksum right), empty (empty)" in good.detail


def test_a_collection_with_a_flipped_bit(checked: Checked, core: Core, settings: Settings) -> None:
    made = core.collections.create("c", "toy:mean", 4)
    made.upsert([StoredObject(str(n), np.full(4, n + 1, np.float32)) for n in range(3)])
    core.close()
    with sqlite3.connect(settings.collections_file) as file:
        file.execute("UPDATE objects SET vector = ? WHERE id = '1'", (np.full(4, 9, np.float32).tobytes(),))
    file.close()
    again = Core(lambda: core.engine, lambda: Collections(settings.collections_file))
    findings = [finding for finding in examine(Checked(settings, again), False) if finding.name == "collections"]
    again.close()
    assert statuses(findings) == ["error"]


def test_redis_that_is_gone(checked: Checked) -> None:
    assert statuses(found(doctor_service.redis, checked)) == ["ok"]
    gone = "redis://127.0.0.1:1/0"
    (warned,) = found(doctor_service.redis, checked, redis_url=gone)
    assert (warned.status, "quotas are counted here" in str(warned.fix)) == ("warning", True)
    assert statuses(found(doctor_service.redis, checked, redis_url=gone, remote_tokenizers="image")) == ["error"]


def test_keys(checked: Checked, tmp_path: Path) -> None:
    assert statuses(found(doctor_service.keys, checked)) == ["ok"]
    assert statuses(found(doctor_service.keys, checked, host="0.0.0.0")) == ["warning"]
    path = tmp_path / "keys.toml"
    path.write_text(entry(Key("a", sha256_of(new_key()), "read")))
    assert statuses(found(doctor_service.keys, checked, keys_file=path)) == ["ok"]
    assert statuses(found(doctor_service.keys, checked, keys_file=path, host="sky.example")) == ["ok", "warning"]
    path.chmod(0o666)
    (writable,) = found(doctor_service.keys, checked, keys_file=path)
    assert (writable.status, "everybody may write" in writable.detail) == ("warning", True)
    path.write_text("[keys]\n")
    path.chmod(0o644)
    assert statuses(found(doctor_service.keys, checked, keys_file=path)) == ["warning"]


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    make_certificates(tmp_path)
    return {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}


def test_a_good_certificate(checked: Checked, certificate: dict[str, Path]) -> None:
    certificate["tls_key"].chmod(0o600)
    assert statuses(found(doctor_service.tls, checked)) == ["ok"]
    assert statuses(found(doctor_service.tls, checked, **certificate)) == ["ok"]
    made = Tls.of(checked.settings.model_copy(update=certificate))
    assert made is not None
    assert doctor_service.expiry(made) == pytest.approx(time.time() + 90 * 86_400, abs=120)
    certificate["tls_key"].chmod(0o644)
    assert statuses(found(doctor_service.tls, checked, **certificate)) == ["ok", "warning"]


def test_a_certificate_that_ends_soon(checked: Checked, tmp_path: Path) -> None:
    make_certificates(tmp_path, days=10)
    (tmp_path / "server.key").chmod(0o600)
    files = {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    assert statuses(found(doctor_service.tls, checked, **files)) == ["warning"]


def test_a_certificate_that_has_ended(checked: Checked, tmp_path: Path) -> None:
    make_certificates(tmp_path, days=-1)
    files = {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    with pytest.raises(BadInput, match="expired") as caught:
        found(doctor_service.tls, checked, **files)
    assert caught.value.field == "ALBIREO_TLS_CERTIFICATE"
