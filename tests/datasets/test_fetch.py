import functools
import hashlib
import http.server
import os
import threading
import time
from pathlib import Path

import pytest

from datasets.fetch import STALE, DataFileError, cache_folder, fetch

CONTENT = b"three papers cite each other"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:9/a.bin"  # the discard port: nothing listens


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A GAT_DATA folder with the right file in it."""
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    file = tmp_path / "toy" / "a.bin"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("GAT_DATA", raising=False)
    monkeypatch.setenv("GAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """A web server: the folder it serves, its address, and the requests that it has seen."""
    folder = tmp_path / "www"
    folder.mkdir()
    seen = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            seen.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{web.server_port}/a.bin", seen
        web.shutdown()
        thread.join()


def test_local_file_is_used_without_any_download(local):
    assert fetch("a.bin", NOWHERE, SHA256, "toy") == local


def test_missing_local_file_names_path_variable_and_source(local):
    local.unlink()
    with pytest.raises(DataFileError) as error:
        fetch("a.bin", NOWHERE, SHA256, "toy")
    for part in (str(local), "GAT_DATA", NOWHERE):
        assert part in str(error.value)


def test_local_file_with_another_hash_is_refused_and_left_alone(local):
    local.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DataFileError) as error:
        fetch("a.bin", NOWHERE, SHA256, "toy")
    for part in (str(local), SHA256, found, "delete it"):
        assert part in str(error.value)
    assert local.read_bytes() == b"something else"


def test_download_is_kept_and_not_repeated(cache, server):
    folder, url, seen = server
    (folder / "a.bin").write_bytes(CONTENT)
    path = fetch("a.bin", url, SHA256, "toy")
    assert path == cache / "toy" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert fetch("a.bin", url, SHA256, "toy") == path
    assert len(seen) == 1


def test_damaged_cache_is_downloaded_again(cache, server):
    folder, url, seen = server
    (folder / "a.bin").write_bytes(CONTENT)
    fetch("a.bin", url, SHA256, "toy").write_bytes(CONTENT[:5])
    assert fetch("a.bin", url, SHA256, "toy").read_bytes() == CONTENT
    assert len(seen) == 2


def test_download_with_another_hash_is_refused_and_leaves_no_file(cache, server):
    folder, url, _ = server
    (folder / "a.bin").write_bytes(b"a changed file")
    with pytest.raises(DataFileError) as error:
        fetch("a.bin", url, SHA256, "toy")
    for part in (url, SHA256, hashlib.sha256(b"a changed file").hexdigest(), "GAT_DATA"):
        assert part in str(error.value)
    assert list((cache / "toy").iterdir()) == []


def test_failed_download_names_url_and_gat_data(cache, server):
    _, url, _ = server  # serves nothing: 404
    for address in (url, NOWHERE):
        with pytest.raises(DataFileError) as error:
            fetch("a.bin", address, SHA256, "toy")
        assert address in str(error.value)
        assert "GAT_DATA" in str(error.value)
    assert list((cache / "toy").iterdir()) == []


def test_damaged_cache_is_not_used_when_the_download_fails(cache):
    damaged = cache / "toy" / "a.bin"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(CONTENT[:5])
    with pytest.raises(DataFileError) as error:
        fetch("a.bin", NOWHERE, SHA256, "toy")
    for part in (f"{damaged} is damaged (sha256 {SHA256} expected", "could not download", NOWHERE):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in damaged.parent.iterdir()] == ["a.bin"]


def test_a_file_that_cannot_be_read_is_named(local, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datasets.fetch.pooch.file_hash", refuse)
    with pytest.raises(DataFileError, match=r"a\.bin cannot be read: Permission denied"):
        fetch("a.bin", NOWHERE, SHA256, "toy")


def test_what_a_killed_download_left_is_swept_but_not_one_that_goes_on(cache, server):
    folder, url, _ = server
    (folder / "a.bin").write_bytes(CONTENT)
    path = fetch("a.bin", url, SHA256, "toy")
    for name, age in (("tmpdead", 2 * STALE), ("tmplive", 0), ("other", 2 * STALE)):
        (path.parent / name).write_bytes(b"part")
        os.utime(path.parent / name, (time.time() - age,) * 2)
    assert fetch("a.bin", url, SHA256, "toy") == path
    assert sorted(left.name for left in path.parent.iterdir()) == ["a.bin", "other", "tmplive"]


def test_pooch_downloads_to_a_name_that_is_swept(cache, server, monkeypatch):
    folder, url, _ = server
    (folder / "a.bin").write_bytes(CONTENT)
    seen = []

    def download(self, url, output_file, pooch):
        seen.append(Path(output_file))
        raise OSError("cut off")

    monkeypatch.setattr("datasets.fetch.pooch.HTTPDownloader.__call__", download)
    with pytest.raises(DataFileError, match="cut off"):
        fetch("a.bin", url, SHA256, "toy")
    assert [path.parent for path in seen] == [cache / "toy"] and seen[0].match("tmp*")


def test_cache_that_cannot_be_written_names_gat_cache(cache, server):
    folder, url, _ = server
    (folder / "a.bin").write_bytes(CONTENT)
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataFileError, match="GAT_CACHE"):
        fetch("a.bin", url, SHA256, "toy")


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("GAT_CACHE", raising=False)
    assert "gat-attention" in str(cache_folder())
    monkeypatch.setenv("GAT_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
