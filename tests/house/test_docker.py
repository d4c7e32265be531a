"""The container files, parsed: no Docker runs here. What can be run without it is run: the health check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from albireo.service.settings import PREFIX, Settings

SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}
TARGETS = ("cpu", "cuda")

Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, list[Instruction]]:
    """Stage -> its instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (root / "Dockerfile").read_text())
    found: dict[str, list[Instruction]] = {}
    name = ""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                name = rest.split(" AS ")[1]
                found[name] = []
            found[name].append((word, rest.strip()))
    return found


def only(stage: list[Instruction], word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def variables(stage: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in only(stage, "ENV") for pair in rest.split())


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def gpu(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "deploy/gpu.yml").read_text()))


def test_both_targets_are_there(stages: dict[str, list[Instruction]]) -> None:
    assert set(TARGETS) < set(stages)


def test_only_instructions_of_docker(stages: dict[str, list[Instruction]]) -> None:
    known = {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {word for stage in stages.values() for word, _ in stage} <= known | {"CMD"}


@pytest.mark.parametrize("target", TARGETS)
def test_not_root(stages: dict[str, list[Instruction]], target: str) -> None:
    """The user is made, owns the data, and is switched to before the command."""
    (user,) = only(stages[target], "USER")
    assert user not in {"root", "0"}
    made = " ".join(only(stages[target], "RUN"))
    assert re.search(rf"useradd .*{user}", made)
    assert f"install -d -o {user} -g {user} /data" in made
    words = [word for word, _ in stages[target]]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in {"RUN", "COPY"})


@pytest.mark.parametrize("target", TARGETS)
def test_serves_on_its_volume(stages: dict[str, list[Instruction]], target: str) -> None:
    environment = variables(stages[target])
    assert {name for name in environment if name.startswith(PREFIX)} <= SETTINGS
    assert environment["ALBIREO_HOST"] == "0.0.0.0"
    assert [environment["ALBIREO_PORT"]] == only(stages[target], "EXPOSE")
    assert [f"{environment['ALBIREO_DATA_FOLDER']} {environment['HF_HOME']}"] == only(stages[target], "VOLUME")
    assert [json.loads(rest) for rest in only(stages[target], "CMD")] == [["albireo", "serve"]]


def test_each_target_installs_its_own_faiss(stages: dict[str, list[Instruction]]) -> None:
    for target, extra in (("cpu", "cpu"), ("cuda", "gpu")):
        steps = " ".join(only(stages[f"{target}-environment"], "RUN"))
        assert re.findall(r"optional-dependencies'\]\['(\w+)'\]", steps) == [extra]
        assert f"--from={target}-environment /opt/albireo /opt/albireo" in " ".join(only(stages[target], "COPY"))


def test_every_source_of_a_copy_exists(root: Path, stages: dict[str, list[Instruction]]) -> None:
    """And is let into the context by .dockerignore."""
    let_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = set()
    for stage in stages.values():
        for rest in only(stage, "COPY"):
            if rest.startswith("--from="):
                assert rest.split()[0].removeprefix("--from=") in stages
            else:
                sources.update(rest.split()[:-1])
    assert all((root / source).exists() for source in sources), sources
    assert sources == let_in


def test_every_folder_is_copied(stages: dict[str, list[Instruction]], folders: list[str]) -> None:
    copied = {rest.split()[0] for rest in only(stages["wheel"], "COPY")}
    assert {folder.split("/")[0] for folder in folders} <= copied


@contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server that answers /readyz with this status, and everything else with 404."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_the_health_check(stages: dict[str, list[Instruction]], target: str, status: int, healthy: bool) -> None:
    (check,) = only(stages[target], "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] in {"python", "python3"}
    with answering(status) as port:
        run = subprocess.run(
            [sys.executable, *command[1:]], env={"ALBIREO_PORT": str(port)}, capture_output=True, check=False
        )
    assert (run.returncode == 0) == healthy, run.stderr


def test_the_services(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"api", "tokenizer-image", "tokenizer-spectrum", "redis"}
    api = compose["services"]["api"]
    assert api["build"] == {"context": ".", "target": "cpu"}
    assert api["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in compose["services"]["redis"]


def test_the_workers_are_of_the_service(compose: dict[str, Any]) -> None:
    """They run its image on its Redis, none is bound to one place, and they are given work."""
    api = compose["services"]["api"]
    workers = {name.removeprefix("tokenizer-"): one for name, one in compose["services"].items() if "tokenizer" in name}
    assert sorted(api["environment"]["ALBIREO_REMOTE_TOKENIZERS"].split(",")) == sorted(workers)
    for pool, worker in workers.items():
        assert worker["command"] == ["albireo", "worker", pool]
        assert worker["image"] == api["image"]
        assert worker["environment"]["ALBIREO_REDIS_URL"] == api["environment"]["ALBIREO_REDIS_URL"]
        assert not {"ports", "container_name"} & worker.keys(), "there can be only one of it"


def test_volumes_are_declared_and_used(compose: dict[str, Any]) -> None:
    mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
    assert {name for name, _ in mounts} == compose["volumes"].keys()
    api = compose["services"]["api"]
    assert api["environment"]["ALBIREO_DATA_FOLDER"] in {mount.split(":")[1] for mount in api["volumes"]}


def test_the_ports_agree_and_are_local(compose: dict[str, Any]) -> None:
    api = compose["services"]["api"]
    (port,) = api["ports"]
    address, _, inside = port.split(":")
    assert address == "127.0.0.1"
    assert inside == api["environment"]["ALBIREO_PORT"]


def test_every_variable_is_a_setting(compose: dict[str, Any], gpu: dict[str, Any]) -> None:
    """And has a value that the settings accept."""
    named = {**compose["services"]["api"]["environment"], **gpu["services"]["api"]["environment"]}
    assert named.keys() <= SETTINGS
    Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in named.items()})
    assert named["ALBIREO_REDIS_URL"].startswith("redis://redis:")


def test_the_gpu_is_laid_over(compose: dict[str, Any], gpu: dict[str, Any]) -> None:
    assert gpu["services"].keys() <= compose["services"].keys()
    assert gpu["services"]["api"]["build"] == {"target": "cuda"}
    devices = gpu["services"]["api"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
