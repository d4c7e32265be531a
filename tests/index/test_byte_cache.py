"""The cache of bytes: what was put is found, its size is kept, damage and trouble are only lost work."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import sqlite3
from pathlib import Path

import pytest

from albireo.index.byte_cache import SMALLEST, ByteCache
from albireo.observations.errors import AlbireoError


def key(n: int) -> bytes:
    return hashlib.sha256(str(n).encode()).digest()


def value(n: int, size: int = 1200) -> bytes:
    return random.Random(n).randbytes(size)


@pytest.fixture
def cache(tmp_path: Path) -> ByteCache:
    return ByteCache(tmp_path / "c.sqlite", 2 << 20)


def test_what_was_put_is_found(cache: ByteCache) -> None:
    cache.put({key(n): value(n) for n in range(50)})
    assert cache.get([key(n) for n in range(60)]) == {key(n): value(n) for n in range(50)}
    assert (cache.counts.hits, cache.counts.misses) == (50, 10)
    cache.put({key(3): b"", key(4): value(99)})
    assert cache.get([key(3), key(4)]) == {key(3): b"", key(4): value(99)}
    cache.close()
    again = ByteCache(cache.path, 2 << 20)
    assert again.get([key(4)]) == {key(4): value(99)}


def test_the_file_never_grows_beyond_its_limit(cache: ByteCache) -> None:
    rng = random.Random(1)
    for batch in range(60):
        cache.put({key(100 * batch + n): value(n, rng.choice([60, 550, 1200, 5000])) for n in range(60)})
        assert cache.size <= cache.limit
        assert cache.path.stat().st_size <= cache.limit
    last = [key(100 * 59 + n) for n in range(60)]
    assert len(cache.get(last)) == 60
    assert cache.get([key(n) for n in range(60)]) == {}
    assert cache.counts.errors == 0
    assert cache.size > cache.limit / 3


def test_the_least_recently_used_go_first(cache: ByteCache) -> None:
    cache.put({key(n): value(n) for n in range(100)})
    for batch in range(1, 20):
        cache.get([key(n) for n in range(10)])
        cache.put({key(100 * batch + n): value(n) for n in range(100)})
    assert len(cache.get([key(n) for n in range(10)])) == 10
    assert cache.get([key(n) for n in range(10, 100)]) == {}


def test_a_smaller_limit(tmp_path: Path) -> None:
    large = ByteCache(tmp_path / "c.sqlite", 8 << 20)
    for batch in range(20):
        large.put({key(100 * batch + n): value(n) for n in range(100)})
    assert large.size > 2 << 20
    large.close()
    small = ByteCache(tmp_path / "c.sqlite", 1 << 20)
    assert small.size <= 1 << 20
    assert len(small.get([key(1900 + n) for n in range(100)])) == 100


def test_a_value_too_large_is_not_kept(cache: ByteCache) -> None:
    cache.put({key(1): bytes(1 << 20), key(2): b"small"})
    assert cache.get([key(1), key(2)]) == {key(2): b"small"}
    assert cache.counts.errors == 0


@pytest.mark.parametrize("column", ["value", "key", "checksum"])
def test_a_damaged_value_counts_as_absent(cache: ByteCache, column: str, caplog: pytest.LogCaptureFixture) -> None:
    cache.put({key(n): value(n) for n in range(3)})
    other = sqlite3.connect(cache.path)
    place = int.from_bytes(key(1)[:8], "big") >> 1
    new: object = 7 if column == "checksum" else bytes(1200)
    other.execute(f"UPDATE entries SET {column} = ? WHERE place = ?", (new, place))
    other.commit()
    assert cache.get([key(n) for n in range(3)]) == {key(0): value(0), key(2): value(2)}
    if column != "key":  # another key at its place is no damage
        assert cache.counts.damaged == 1
        assert "damaged" in caplog.text
    cache.put({key(1): value(1)})
    assert cache.get([key(1)]) == {key(1): value(1)}


def test_a_file_that_is_broken_later(cache: ByteCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.put({key(n): value(n) for n in range(400)})
    cache.close()
    content = bytearray(cache.path.read_bytes())
    content[3 * 4096 :] = bytes(len(content) - 3 * 4096)
    cache.path.write_bytes(content)
    broken = ByteCache(cache.path, 2 << 20)
    found = broken.get([key(n) for n in range(400)])
    assert all(found[name] == value(n) for n in range(400) if (name := key(n)) in found)
    broken.put({key(n): value(n) for n in range(400, 500)})
    assert broken.counts.errors + broken.counts.damaged > 0
    assert "cache" in caplog.text or "damaged" in caplog.text


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 100)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    (tmp_path / "folder").mkdir()
    for name in ("text", "other.sqlite", "folder"):
        with pytest.raises(AlbireoError) as caught:
            ByteCache(tmp_path / name, SMALLEST)
        assert caught.value.code == "storage_unavailable"
    assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    with pytest.raises(AlbireoError, match="option_invalid"):
        ByteCache(tmp_path / "small", 1000)


def test_a_cache_that_was_closed_is_lost_work(cache: ByteCache) -> None:
    cache.put({key(1): value(1)})
    cache.close()
    assert cache.get([key(1)]) == {}
    cache.put({key(2): value(2)})
    assert cache.counts.errors == 2


def _work(path: Path, seed: int) -> None:
    cache = ByteCache(path, 1 << 20)
    rng = random.Random(seed)
    for _ in range(30):
        numbers = [rng.randrange(2000) for _ in range(20)]
        found = cache.get([key(n) for n in numbers])
        assert all(found[key(n)] == value(n) for n in numbers if key(n) in found)
        cache.put({key(n): value(n) for n in numbers if key(n) not in found})
    assert cache.counts.errors == cache.counts.damaged == 0
    cache.close()


def test_two_processes(tmp_path: Path) -> None:
    """Both begin with no file, and write and evict at the same time."""
    path = tmp_path / "c.sqlite"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(path, seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    after = ByteCache(path, 1 << 20)
    assert after.size <= 1 << 20
    rows = sqlite3.connect(path)
    assert (
        rows.execute("SELECT sum(size) FROM entries").fetchone() == rows.execute("SELECT bytes FROM total").fetchone()
    )
    assert len(after.get([key(n) for n in range(2000)])) > 100


@pytest.mark.parametrize("column", ["size", "checksum", "value", "key", "used"])
def test_cells_of_other_types(cache: ByteCache, column: str) -> None:
    """Damage may make a text of a number: it is lost work, and no error."""
    cache.put({key(n): value(n) for n in range(20)})
    cache.close()
    with sqlite3.connect(cache.path) as file:
        file.execute(f"UPDATE entries SET {column} = 'a'")
        file.execute("UPDATE total SET bytes = 'a'")
    file.close()
    again = ByteCache(cache.path, 2 << 20)
    assert again.get([key(n) for n in range(20)]) == ({} if column in ("checksum", "value", "key") else
                                                      {key(n): value(n) for n in range(20)})  # fmt: skip
    again.put({key(3): value(4)})
    assert again.counts.errors > 0
    again.close()
