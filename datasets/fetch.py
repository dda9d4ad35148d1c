"""One way to get a data file: from a local folder or by download, and only if its hash matches."""

import os
from pathlib import Path

import pooch


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
    Downloads are atomic: a broken one leaves no file behind.

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
        found = pooch.file_hash(str(path), alg="sha256")
        if found != sha256:
            raise DataFileError(
                f"{path} is not the expected file: sha256 {sha256} expected, {found} found; "
                f"delete it and fetch it again from {url}"
            )
        return path

    target = cache_folder() / folder
    try:
        return Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=target))
    except ValueError as error:  # pooch: the hash of the download differs
        raise DataFileError(
            f"{url} does not serve the expected file {name}, so the download was deleted: {error} "
            f"Try again; if it persists, put a good copy at $GAT_DATA/{folder}/{name} and set "
            f"GAT_DATA"
        ) from error
    except OSError as error:  # requests' errors are OSErrors too
        raise DataFileError(
            f"could not download {url} into {target}: {error}. Check the connection (or set "
            f"GAT_CACHE to a writable folder), or put the file at $GAT_DATA/{folder}/{name} and "
            f"set GAT_DATA"
        ) from error
