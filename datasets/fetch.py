"""One way to get a data file: from a local folder or by download, and only if its hash matches."""

import os
import time
from pathlib import Path

import pooch

STALE = 600  # seconds for which nothing was written to a download that is still going on


class DataFileError(OSError):
    """A data file is missing, cannot be downloaded, or is not the file whose hash is pinned."""


def cache_folder() -> Path:
    """Return the folder where downloads are kept: ``GAT_CACHE`` if set, else the user's cache.

    Example:
        >>> cache_folder().name != ""
        True
    """
    return Path(os.environ.get("GAT_CACHE") or pooch.os_cache("gat-attention")).expanduser()


def fetch(name: str, url: str, sha256: str, folder: str) -> Path:
    """Return the path of a data file whose content is known by its sha256.

    With the environment variable ``GAT_DATA`` set, the file is ``$GAT_DATA/<folder>/<name>`` and
    nothing is downloaded or written. Otherwise it is downloaded from ``url`` into
    ``cache_folder()/<folder>``, once; a cached file that has been damaged is downloaded again.
    Downloads are atomic: a broken one leaves no file behind, and what a killed process left is
    removed by a later call.

    Args:
        name: file name, the same in ``GAT_DATA``, in the cache and on the server.
        url: address to download from.
        sha256: expected hash of the content, 64 hexadecimal digits.
        folder: subfolder of ``GAT_DATA`` and of the cache, such as ``"planetoid"``.

    Returns:
        The path of a file that has just been verified.

    Raises:
        DataFileError: the file is missing from ``GAT_DATA``, the download fails, or the content
            is not what the hash says.

    Example:
        >>> import hashlib, tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as root, patch.dict(os.environ, GAT_DATA=root):
        ...     file = Path(root, "toy", "a.txt")
        ...     file.parent.mkdir()
        ...     _ = file.write_bytes(b"hello")
        ...     sha256 = hashlib.sha256(b"hello").hexdigest()
        ...     fetch("a.txt", "https://example.org/a.txt", sha256, "toy").read_bytes()
        b'hello'
    """
    if local := os.environ.get("GAT_DATA"):
        path = Path(local).expanduser() / folder / name
        if not path.is_file():
            raise DataFileError(
                f"{path} does not exist, though GAT_DATA={local} says to look there; put the file "
                f"from {url} there, or unset GAT_DATA to have it downloaded"
            )
        if (found := _hash(path)) != sha256:
            raise DataFileError(
                f"{path} is not the expected file: sha256 {sha256} expected, {found} found; "
                f"delete it and fetch it again from {url}"
            )
        return path

    target = cache_folder() / folder
    _sweep(target)
    cached = target / name
    damaged = ""
    if cached.is_file():
        if (found := _hash(cached)) == sha256:
            return cached
        damaged = f"{cached} is damaged (sha256 {sha256} expected, {found} found), and "
    help_yourself = f"put a good copy at $GAT_DATA/{folder}/{name} and set GAT_DATA"
    try:
        return Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=target))
    except ValueError as error:  # pooch: the hash of the download differs
        raise DataFileError(
            f"{damaged}{url} does not serve the expected file {name}, so the download was deleted: "
            f"{_one_line(error)} Try again; if it persists, {help_yourself}"
        ) from error
    except OSError as error:  # requests' errors are OSErrors too
        raise DataFileError(
            f"{damaged}could not download {url} into {target}: {_one_line(error)}. Check the "
            f"connection (or set GAT_CACHE to a writable folder), or {help_yourself}"
        ) from error


def _hash(path: Path) -> str:
    try:
        return pooch.file_hash(str(path), alg="sha256")
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror}") from error


def _sweep(folder: Path) -> None:
    """Remove what downloads left behind whose process was killed.

    pooch writes to a file "tmp…" beside the target. Another process may be at it: as long as it
    writes, the file is young.
    """
    for left in folder.glob("tmp*"):
        try:
            if left.is_file() and time.time() - left.stat().st_mtime > STALE:
                left.unlink()
        except OSError:  # gone already, or not ours to remove
            continue


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
