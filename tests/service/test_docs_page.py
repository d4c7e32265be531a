"""/docs works without a network: all that the page refers to is served by the app, and no other host is named."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from fastapi.testclient import TestClient

from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.docs_page import SWAGGER_UI
from albireo.service.keys import Key, entry, new_key, sha256_of
from albireo.service.settings import Settings


class Page(HTMLParser):
    """What a page refers to, and what of scripts and styles stands in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[tuple[str, set[str]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.tags.append((tag, {name for name, _ in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(params=[False, True], ids=["open", "with keys"])
def asked(request: pytest.FixtureRequest, core: Core, settings: Settings, tmp_path: Path) -> TestClient:
    """Somebody without a key, at a service that asks for none, and at one that asks for them."""
    if request.param:
        (tmp_path / "keys.toml").write_text(entry(Key("a", sha256_of(new_key()), "read")))
        settings = settings.model_copy(update={"keys_file": tmp_path / "keys.toml"})
    made = TestClient(create_app(core, settings), base_url="http://albireo.example")
    assert (made.get("/v1/info").status_code == 401) is request.param
    return made


def kept(base: str, address: str) -> str:
    """The path of an address on the host of the page."""
    found = urlsplit(urljoin(base, address))
    assert (found.scheme, found.netloc) == ("http", "albireo.example"), address
    return found.path


def test_all_that_the_page_needs_is_served(asked: TestClient) -> None:
    answer = asked.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    paths = [kept("http://albireo.example/docs", address) for address in page.addresses]
    assert {path.rpartition("/")[2] for path in paths} == {*SWAGGER_UI, "start.js"}
    kinds = {".js": "text/javascript", "css": "text/css", "png": "image/png"}
    texts = {}
    for path in paths:
        found = asked.get(path)
        assert (found.status_code, bool(found.content)) == (200, True), path
        assert found.headers["content-type"].startswith(kinds[path[-3:]])
        assert asked.head(path).status_code == 200
        texts[path.rpartition("/")[2]] = found.text if not path.endswith("png") else ""
    (described,) = re.findall(r'url: "([^"]+)"', texts["start.js"])
    document = asked.get(kept("http://albireo.example/docs", described))
    assert document.json()["openapi"].startswith("3.1")
    (major,) = re.findall(r'PACKAGE_VERSION:"(\d+)\.', texts["swagger-ui-bundle.js"])
    assert int(major) >= 5  # older ones do not know OpenAPI 3.1


def test_the_page_holds_below_a_prefix(asked: TestClient) -> None:
    """Of a proxy that takes it off again."""
    for address in Page(asked.get("/docs").text).addresses:
        assert kept("http://albireo.example/sky/docs", address).startswith("/sky/docs/")


def test_no_other_host_is_named(asked: TestClient) -> None:
    for path in ("/docs", "/docs/start.js"):
        assert "//" not in re.sub(r" // .*", "", asked.get(path).text), path
    style = asked.get("/docs/swagger-ui.css").text
    assert set(re.findall(r"url\([\"']?(\w+:)", style)) == {"data:"}
    assert style.count("url(") == len(re.findall(r"url\([\"']?data:", style))
    assert "@import" not in style


def test_a_browser_is_told_to_ask_no_other_host(asked: TestClient) -> None:
    """The bundle knows addresses of other hosts, as that of its makers' validator."""
    answer = asked.get("/docs")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {word for words in policy.values() for word in words.split()} == {"'none'", "'self'", "data:", "blob:"}
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "validatorUrl: null" in asked.get("/docs/start.js").text
    page = Page(answer.text)
    assert page.inline == ""
    assert not any(name == "style" or name.startswith("on") for _, names in page.tags for name in names)


def test_there_is_one_such_page(asked: TestClient) -> None:
    assert asked.get("/redoc").status_code in (401, 404)
    assert "cdn" not in asked.get("/docs").text
