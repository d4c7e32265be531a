"""API keys: who is let in to do what, how much of it, and what is counted where; the same at every door."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from albireo.observations.errors import BadInput, Busy, Denied, NoKey, Unavailable
from albireo.service.access import Access, charge, rate_limit
from albireo.service.app import create_app
from albireo.service.cli import app as cli
from albireo.service.grpc_calls import operation_of
from albireo.service.keys import ROLES, Key, Quota, Role, entry, new_key, read_keys, sha256_of
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.protos.inference import open_inference_pb2
from albireo.service.quotas import DAY, MINUTE, Counters, limits_of
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from tests.service.grpc_doors import detail, embedded, of_fluxes, served

VALUES = {"flux_g": 1.0, "flux_g_unit": "nanomaggy"}
READ = {"survey": "legacysurvey", "release": "dr10", "system": "AB", "kind": "model", "extinction_corrected": False}
ONE = {"items": [{"id": "a", "inputs": [{"values": VALUES, "read": READ}]}]}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Role -> a key of it, of the file keys.toml; `tight` may ask twice a minute, `cheap` has ten tokens a day."""
    texts = {name: new_key() for name in (*ROLES, "tight", "cheap")}
    rows = [Key(role, sha256_of(texts[role]), role, Quota(requests_per_day=1000)) for role in ROLES]
    rows.append(Key("tight", sha256_of(texts["tight"]), "read", Quota(requests_per_minute=2)))
    rows.append(Key("cheap", sha256_of(texts["cheap"]), "read", Quota(tokens_per_day=10)))
    (tmp_path / "keys.toml").write_text("\n\n".join(entry(key) for key in rows))
    return texts


@pytest.fixture
def access(keys, tmp_path: Path, clock: Clock) -> Access:
    return Access(tmp_path / "keys.toml", Counters(clock), clock=clock)


# Keys and their file


def test_a_key_is_long_random_and_kept_as_a_hash(keys, tmp_path: Path) -> None:
    assert len(set(keys.values())) == len(keys)
    assert all(re.fullmatch(r"albireo_[\w-]{43}", key) for key in keys.values())
    text = (tmp_path / "keys.toml").read_text()
    assert not any(key in text for key in keys.values())


def test_the_file_says_what_its_lines_said(tmp_path: Path) -> None:
    quota = Quota(60, 1000, 5000, 100_000, 10)
    made = [Key("a.b-c_1", "0" * 64, "admin", quota), Key("plain", "1" * 64, "read")]
    (tmp_path / "keys.toml").write_text("\n".join(entry(key) for key in made))
    assert list(read_keys(tmp_path / "keys.toml").values()) == made
    rows = {key.name: {"sha256": key.sha256, "role": key.role} for key in made}
    rows["a.b-c_1"] |= vars(quota)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": rows}))
    assert list(read_keys(tmp_path / "keys.json").values()) == made


SECRET = "albireo_this-is-a-key-that-stands-where-its-hash-should"


@pytest.mark.parametrize(
    "text",
    [
        f'[keys.a]\nsha256 = "{SECRET}"\nrole = "read"',
        f'[keys.a]\nkey = "{SECRET}"\nrole = "read"',
        f'[keys.a]\nsha256 = "{"0" * 64}"\nrole = "owner"',
        f'[keys.a]\nsha256 = "{"0" * 64}"\nrole = "read"\ntokens_per_day = 0',
        f'[keys.a]\nsha256 = "{"0" * 64}"\nrole = "read"\ntokens_per_day = true',
        f'[keys.a]\nsha256 = "{"0" * 64}"\nrole = "read"\ntokens_per_hour = 5',
        f'[keys."a b"]\nsha256 = "{"0" * 64}"\nrole = "read"',
        f'[keys.a]\nsha256 = "{"0" * 64}"\nrole = "read"\n[keys.b]\nsha256 = "{"0" * 64}"\nrole = "read"',
        "[keys]\na = 3",
        "keys = [1]",
        f"[keys.a\nsha256 = {SECRET}",
        '[people.a]\nname = "b"',
    ],
)
def test_a_wrong_file_is_refused_without_repeating_what_may_be_a_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_keys(tmp_path / "keys.toml")
    assert (caught.value.code, caught.value.file) == ("option_invalid", str(tmp_path / "keys.toml"))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=re.escape(str(tmp_path))):
        Access(tmp_path / "none.toml")


def test_the_command_prints_a_key_once_and_its_lines(tmp_path: Path) -> None:
    run = CliRunner().invoke(cli, ["keys", "new", "--role", "write", "--name", "pipeline", "--tokens-per-day", "500"])
    assert run.exit_code == 0, run.output
    key = re.search(r"albireo_[\w-]{43}", run.output)
    assert key is not None
    (tmp_path / "keys.toml").write_text(run.output[run.output.index("[keys.") :])
    (made,) = read_keys(tmp_path / "keys.toml").values()
    assert made == Key("pipeline", sha256_of(key[0]), "write", Quota(tokens_per_day=500))
    listed = CliRunner().invoke(cli, ["keys", "ls", str(tmp_path / "keys.toml")])
    assert listed.output == "pipeline  write  500 tokens per day\n"
    assert (
        json.loads(CliRunner().invoke(cli, ["keys", "new", "--name", "a", "--json"]).output)["entry"]["a"]["role"]
        == "read"
    )
    assert CliRunner().invoke(cli, ["keys", "new", "--name", "a", "--role", "owner"]).exit_code == 2
    assert CliRunner().invoke(cli, ["keys", "new", "--name", "a b"]).exit_code == 1


# Roles


@pytest.mark.parametrize(
    ("operation", "role"),
    [
        ("GET /livez", None),
        ("GET /readyz", None),
        ("GET /docs/errors", None),
        ("GET /openapi.json", None),
        ("GET /metrics", None),
        ("OPTIONS /v1/embed", None),
        ("GET /v2/health/ready", None),
        ("GET /v2/models/m/versions/1/ready", None),
        ("GET /v2/models/m", "read"),
        ("GET /v1/collections/c", "read"),
        ("POST /v1/embed", "read"),
        ("POST /v1/predict/redshift", "read"),
        ("POST /v1/collections/c/search", "read"),
        ("PUT /v1/collections/c", "write"),
        ("POST /v1/collections/c/objects", "write"),
        ("DELETE /v1/collections/c", "admin"),
        ("POST /v1/models/m:load", "admin"),
        ("POST /v1/embed/../../v1/models/m:load", "admin"),
        ("PUT /v1/embed", "admin"),
        ("embed_stream", "read"),
        ("model_infer", "read"),
        ("upsert", "write"),
        ("server_live", None),
        ("repository_model_load", "admin"),
    ],
)
def test_what_an_operation_needs(access: Access, operation: str, role: Role | None) -> None:
    assert access.role_of(operation) == role


def test_every_operation_stands_in_the_table(core, settings: Settings, access: Access) -> None:
    """What is in no row is for admins: only what changes the model may be left out."""
    paths = create_app(core, settings).openapi()["paths"]
    needed = {
        f"{method.upper()} {path}": access.role_of(f"{method.upper()} {re.sub(r'{[^}]*}', 'x', path)}")
        for path, methods in paths.items()
        for method in methods
    }
    assert [operation for operation, role in needed.items() if role == "admin" and ":" not in operation] == []
    assert needed["POST /v1/embed"] == "read"


def test_every_grpc_method_stands_in_the_table(access: Access) -> None:
    names = {
        operation_of(f"/x/{method.name}")
        for file in (pb.DESCRIPTOR, open_inference_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert {"embed", "upsert", "model_infer"} <= names
    assert [name for name in names if access.role_of(name) == "admin"] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_those_before_it_may(access: Access, keys, role: Role) -> None:
    for needed, operation in (("read", "POST /v1/embed"), ("write", "PUT /v1/collections/c"), ("admin", "anything")):
        if ROLES.index(role) >= ROLES.index(needed):
            assert access.check(keys[role], operation).name == role
        else:
            with pytest.raises(Denied) as caught:
                access.check(keys[role], operation)
            assert caught.value.code == "role_missing"


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "key_missing"),
        ("", "key_missing"),
        pytest.param(new_key(), "key_unknown", id="another"),
        ("\udce9", "key_unknown"),
    ],
)
def test_without_a_known_key(access: Access, key: str | None, code: str) -> None:
    with pytest.raises(NoKey) as caught:
        access.check(key, "embed")
    assert caught.value.code == code
    assert access.check(key, "GET /livez").name is None
    assert not key or key not in str(caught.value)


def test_metrics_may_need_a_role(keys, tmp_path: Path) -> None:
    access = Access(tmp_path / "keys.toml", metrics_role="admin")
    with pytest.raises(Denied):
        access.check(keys["read"], "GET /metrics")
    assert access.check(keys["admin"], "GET /metrics").name == "admin"


def test_without_a_file_everybody_may_do_everything() -> None:
    access = Access()
    assert access.check(None, "POST /v1/models/m:load").name is None
    assert access.open
    assert access.report()[0]


def test_the_file_is_read_again_when_it_changes(access: Access, keys, tmp_path: Path, clock: Clock, caplog) -> None:
    path, late = tmp_path / "keys.toml", new_key()
    before = path.read_text()
    path.write_text(before + "\n" + entry(Key("late", sha256_of(late), "read")))
    with pytest.raises(NoKey):
        access.check(late, "embed")
    clock.now += 3
    assert access.check(late, "embed").name == "late"
    path.write_text("this is no file of keys")
    clock.now += 3
    assert access.check(keys["read"], "embed").name == "read"
    assert access.report() == (False, access.report()[1])
    assert "cannot be used" in caplog.text
    path.write_text("\n".join(before.split("\n\n")[1:]))
    clock.now += 3
    with pytest.raises(NoKey):
        access.check(keys["read"], "embed")
    assert access.report()[0]


# Quotas


def test_a_bucket_fills_evenly(access: Access, keys, clock: Clock) -> None:
    for left in (1, 0):
        grant = access.check(keys["tight"], "embed")
        assert [(state.remaining, state.reset) for state in grant.states] == [(left, 30 * (2 - left))]
    with pytest.raises(Busy) as caught:
        access.check(keys["tight"], "embed")
    assert (caught.value.code, caught.value.field) == ("quota_exceeded", "requests_per_minute")
    assert caught.value.retry_after == pytest.approx(30)
    clock.now += 29.9
    with pytest.raises(Busy):
        access.check(keys["tight"], "embed")
    clock.now += 0.2
    access.check(keys["tight"], "embed")
    clock.now += 1e6
    assert access.check(keys["tight"], "embed").states[0].remaining == 1


def test_tokens_are_charged_after_the_answer(access: Access, keys, clock: Clock) -> None:
    grant = access.check(keys["cheap"], "embed")
    charge(grant, 7)
    assert grant.states[0].remaining == 3
    charge(access.check(keys["cheap"], "embed"), 23)  # more than is left: the answer is given, and the key waits
    with pytest.raises(Busy) as caught:
        access.check(keys["cheap"], "embed")
    assert caught.value.field == "tokens_per_day"
    assert caught.value.retry_after == pytest.approx(21 * DAY / 10)
    with pytest.raises(Busy):
        grant.go_on()
    clock.now += 21 * DAY / 10 + 1
    grant.go_on()
    access.check(keys["cheap"], "embed")


def test_a_burst(tmp_path: Path, clock: Clock) -> None:
    key = Key("a", "0" * 64, "read", Quota(requests_per_minute=60, burst=3))
    counters = Counters(clock)
    counters.know([key])
    for _ in range(3):
        counters.take(key)
    with pytest.raises(Busy) as caught:
        counters.take(key)
    assert caught.value.retry_after == pytest.approx(1)
    clock.now += 1
    counters.take(key)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 40)), max_size=60),
    st.integers(1, 20),
    st.integers(1, 200),
)
def test_no_more_than_the_quota_in_any_time(steps: list[tuple[float, int]], requests: int, tokens: int) -> None:
    """Over any time, at most a full bucket and what came in since was taken, but for one answer's tokens."""
    clock = Clock()
    key = Key("a", "0" * 64, "read", Quota(requests_per_minute=requests, tokens_per_minute=tokens))
    counters = Counters(clock)
    counters.know([key])
    began, taken, spent, last = clock.now, 0, 0, 0
    for wait, cost in steps:
        clock.now += wait
        try:
            counters.take(key)
        except Busy as busy:
            clock.now += busy.retry_after + 1e-6  # it says the truth: then there is room
            counters.take(key)
        taken, spent, last = taken + 1, spent + cost, cost
        counters.charge(key, cost)
    passed = clock.now - began
    assert taken <= requests * (1 + passed / MINUTE) + 1e-6
    assert spent - last <= tokens * (1 + passed / MINUTE) + max((cost for _, cost in steps), default=0) + 1e-6


def test_what_a_quota_limits() -> None:
    assert limits_of(Quota()) == ()
    names = [limit.name for limit in limits_of(Quota(1, 2, 3, 4, 5))]
    assert names == ["requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"]
    assert [limit.capacity for limit in limits_of(Quota(1, 2, 3, 4, 5))] == [5, 2, 3, 4]


def test_headers_tell_of_the_limit_that_ends_first(clock: Clock) -> None:
    key = Key("a", "0" * 64, "read", Quota(requests_per_minute=10, tokens_per_day=100))
    counters = Counters(clock)
    counters.know([key])
    counters.take(key)
    headers = dict(rate_limit(counters.charge(key, 50)))
    assert headers["RateLimit-Limit"] == "100"
    assert headers["RateLimit-Remaining"] == "50"
    assert headers["RateLimit-Reset"] == str(DAY // 2)
    assert headers["RateLimit-Policy"] == '"requests_per_minute";q=10;w=60, "tokens_per_day";q=100;w=86400'
    assert rate_limit(()) == []


def test_a_check_takes_microseconds(tmp_path: Path) -> None:
    text = new_key()
    quota = Quota(10**9, 10**9, 10**9, 10**9)
    (tmp_path / "keys.toml").write_text(entry(Key("a", sha256_of(text), "write", quota)))
    access = Access(tmp_path / "keys.toml")

    def a_thousand() -> float:
        began = time.process_time()
        for _ in range(1000):
            grant = access.check(text, "POST /v1/embed")
            grant.charge(100)
            grant.headers()
        return (time.process_time() - began) / 1000

    assert min(a_thousand() for _ in range(5)) < 50e-6


# The HTTP door


@pytest.fixture
def guarded(core, settings: Settings, keys, tmp_path: Path) -> Iterator[TestClient]:
    changed = settings.model_copy(update={"keys_file": tmp_path / "keys.toml", "cors_origins": "https://sky.example"})
    readiness = Readiness(core, changed.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
    with TestClient(create_app(core, changed, readiness), raise_server_exceptions=False) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_http_without_a_key(guarded: TestClient) -> None:
    answer = guarded.post("/v1/embed", json=ONE)
    assert (answer.status_code, answer.json()["code"]) == (401, "key_missing")
    assert answer.headers["www-authenticate"] == 'Bearer realm="albireo"'
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert guarded.get("/nowhere").status_code == 401
    for open_address in ("/livez", "/readyz", "/docs", "/openapi.json", "/metrics", "/v2/health/live"):
        assert guarded.get(open_address).status_code == 200, open_address


@pytest.mark.parametrize("name", ["Authorization", "X-API-Key"])
def test_http_with_a_key(guarded: TestClient, keys, name: str) -> None:
    value = f"bearer  {keys['read']}" if name == "Authorization" else keys["read"]
    answer = guarded.post("/v1/embed", json=ONE, headers={name: value})
    assert answer.status_code == 200, answer.text
    assert answer.headers["ratelimit-limit"] == "1000"
    assert answer.headers["ratelimit-remaining"] == "999"
    assert int(answer.headers["ratelimit-reset"]) >= 0
    denied = guarded.put("/v1/collections/c", headers={name: value})
    assert (denied.status_code, denied.json()["code"]) == (403, "role_missing")
    assert denied.headers["ratelimit-limit"] == "1000"
    assert guarded.put("/v1/collections/c", headers=bearer(keys["write"])).status_code == 200


def test_http_quota_of_requests(guarded: TestClient, keys) -> None:
    assert [guarded.get("/v1/info", headers=bearer(keys["tight"])).status_code for _ in range(3)] == [200, 200, 429]
    refused = guarded.get("/v1/info", headers=bearer(keys["tight"]))
    assert refused.json()["code"] == "quota_exceeded"
    assert 25 <= int(refused.headers["retry-after"]) <= 31
    assert refused.headers["ratelimit-remaining"] == "0"
    usage = guarded.get("/v1/usage", headers=bearer(keys["tight"]))  # who has used up all may ask how long
    assert (usage.status_code, usage.json()["limits"][0]["remaining"]) == (200, 0)


def test_http_quota_of_tokens_is_that_of_usage(guarded: TestClient, keys) -> None:
    answer = guarded.post("/v1/embed", json=ONE, headers=bearer(keys["cheap"]))
    tokens = answer.json()["usage"]["tokens"]
    assert 0 < tokens < 10
    assert int(answer.headers["ratelimit-remaining"]) == 10 - tokens
    usage = guarded.get("/v1/usage", headers=bearer(keys["cheap"])).json()
    (limit,) = usage["limits"]
    assert (usage["key"], usage["role"], usage["counted"]) == ("cheap", "read", "here")
    assert limit == {
        "unit": "tokens", "amount": 10, "window_seconds": DAY, "burst": 10, "remaining": 10 - tokens,
        "reset_seconds": limit["reset_seconds"],
    }  # fmt: skip
    codes = [guarded.post("/v1/embed", json=ONE, headers=bearer(keys["cheap"])).status_code for _ in range(10)]
    assert codes == sorted(codes)
    assert codes[-1] == 429
    assert guarded.get("/v1/info", headers=bearer(keys["cheap"])).status_code == 200  # it costs no tokens


def test_a_service_without_keys_counts_nothing(client: TestClient) -> None:
    answer = client.post("/v1/embed", json=ONE)
    assert answer.status_code == 200
    assert "ratelimit-limit" not in answer.headers
    usage = client.get("/v1/usage").json()
    assert (usage["key"], usage["role"], usage["limits"]) == (None, None, [])


def test_keys_are_in_no_log(guarded: TestClient, keys, caplog) -> None:
    wrong = new_key()
    with caplog.at_level(logging.DEBUG):
        guarded.post("/v1/embed", json=ONE, headers=bearer(keys["read"]))
        guarded.post("/v1/embed", json=ONE, headers=bearer(wrong))
        guarded.get("/v1/info", headers={"X-API-Key": keys["tight"]})
    records = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert any("'key': 'read'" in text for text in records)
    assert not any(key in text for text in records for key in (*keys.values(), wrong))


def test_pages_of_other_origins(guarded: TestClient, client: TestClient, keys) -> None:
    asked = {"Origin": "https://sky.example", "Access-Control-Request-Method": "POST"}
    allowed = guarded.options("/v1/embed", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://sky.example"
    answer = guarded.get("/v1/info", headers=bearer(keys["read"]) | {"Origin": "https://sky.example"})
    assert "RateLimit-Remaining" in answer.headers["access-control-expose-headers"]
    other = guarded.get("/v1/info", headers=bearer(keys["read"]) | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert (
        "access-control-allow-origin" not in client.get("/v1/info", headers={"Origin": "https://sky.example"}).headers
    )


# The gRPC door


def test_grpc_asks_the_same_access(core, settings: Settings, access: Access, keys) -> None:
    def ask(key: str | None) -> Any:
        metadata = [] if key is None else [("authorization", f"Bearer {key}")]
        return door.embedding.Embed(embedded(of_fluxes("a")), metadata=metadata, timeout=20)

    def refused(key: str | None) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            ask(key)
        return caught.value.code(), detail(caught.value, "ErrorInfo").reason

    with served(core, settings, access=access) as door:
        metadata = [("authorization", f"Bearer {keys['cheap']}")]
        answer, call = door.embedding.Embed.with_call(embedded(of_fluxes("a")), metadata=metadata, timeout=20)
        tokens = answer.envelope.tokens
        assert tokens > 0
        assert [state.remaining for state in access.check(keys["cheap"], "embed").states] == [10 - tokens]
        assert dict(call.trailing_metadata())["ratelimit-remaining"] == str(10 - tokens)
        ask(keys["tight"])
        ask(keys["tight"])
        assert refused(keys["tight"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota_exceeded")
        assert refused(None) == (grpc.StatusCode.UNAUTHENTICATED, "key_missing")
        assert refused(new_key()) == (grpc.StatusCode.UNAUTHENTICATED, "key_unknown")
        rows = iter([pb.ObjectRow(collection="c")])
        with pytest.raises(grpc.RpcError) as caught:
            list(door.search.Upsert(rows, metadata=[("x-api-key", keys["read"])], timeout=20))
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_grpc_stream_is_charged_part_by_part(core, settings: Settings, access: Access, keys, clock: Clock) -> None:
    """A stream that goes on for longer than its key's tokens ends, though it was let in."""

    def items() -> Iterator[pb.Item]:
        for n in range(2000):
            yield of_fluxes(str(n))
            if n >= 5:
                sent.wait(0.05)  # window by window, so that what was computed is known before the next

    sent = threading.Event()
    with served(core, settings, access=access) as door:
        answers = door.embedding.EmbedStream(
            items(), metadata=[("authorization", f"Bearer {keys['cheap']}")], timeout=20
        )
        got: list[pb.ItemResult] = []
        with pytest.raises(grpc.RpcError) as caught:
            got.extend(answers)
        sent.set()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 0 < len(got) < 2000
