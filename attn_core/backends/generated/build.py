"""From C++ to a loaded library: one build for each source, kept in a folder of this user.

The name of a library is a hash of its source, its compiler and its flags. A library is loaded only
if it and its folder belong to this user and nobody else may write to them; it gets its name when it
is whole, so that processes that build the same one at the same time do not meet.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from attn_core import compiled
from attn_core.backends.generated.trace import Unsupported

_FLAGS = [
    *("-std=c++17", "-O2", "-ftree-vectorize", "-fopenmp-simd", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fvisibility=hidden", "-Wno-psabi"),
]
_SETS = {  # as CMakeLists.txt has them
    "avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma"],
}
_TIMEOUT = 300  # seconds that a compiler may take


def cache_folder() -> Path:
    """Where libraries are kept: `kernels` in `GAT_CACHE`, by default in the user's cache."""
    given = os.environ.get("GAT_CACHE")
    if given:
        return Path(given).expanduser() / "kernels"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gat-attention" / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gat-attention" / "kernels"


def compiler() -> str | None:
    """The C++ compiler: that of the environment variable CXX, or g++, clang++ or c++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for name in (*named[:1], "g++", "clang++", "c++"):
        found = shutil.which(name)
        if found is not None:
            return found
    return None


@cache
def _version(path: str, changed: int) -> str:
    """What a compiler says of itself."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    return done.stdout


def load(source: str) -> ctypes.CDLL:
    """Build this source, or find it built, and load it.

    Raises:
        Unsupported: there is no compiler, it fails, or nothing may be kept.
    """
    path = compiler()
    if path is None or not hasattr(os, "getuid"):  # Windows knows no owner as POSIX does
        raise Unsupported(
            "needs a C++17 compiler (g++ or clang++, named by CXX), which is not there"
        )
    try:
        flags = [*_FLAGS, *_instructions()]
        told = [
            source,
            _version(path, os.stat(path).st_mtime_ns),
            " ".join(flags),
            platform.machine(),
        ]
        name = hashlib.sha256("\0".join(told).encode()).hexdigest()[:32] + ".so"
        folder = _own_folder(cache_folder())
        library = folder / name
        if not library.exists():
            _build(path, flags, source, library)
        _check_own(library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise Unsupported(f"cannot be compiled ({error})") from error


def _instructions() -> list[str]:
    """The flags of the instruction set that the library's own kernels use here."""
    module = compiled.module
    return _SETS.get(module.instruction_set(), []) if module is not None else []


def _own_folder(folder: Path) -> Path:
    """A folder that is this user's alone, made if it is not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_own(folder)
    return folder


def _check_own(path: Path) -> None:
    """Raise unless this is the user's, and nobody else may write to it."""
    found = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & others:
        raise OSError(
            f"{path} may be written by others than this user: remove it, or name another folder "
            "by GAT_CACHE"
        )


def _build(path: str, flags: list[str], source: str, library: Path) -> None:
    """Compile beside the library's place, then move it there."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        code, made = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        code.write_text(source, encoding="utf-8")
        command = [path, *flags, str(code), "-o", str(made), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line]
            raise OSError(f"{path} failed: {(said or ['it said nothing'])[0][:300]}")
        made.chmod(0o700)
        os.replace(made, library)
