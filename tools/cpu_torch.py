"""Makes a CUDA build of torch run on a machine without CUDA, and without the CUDA libraries.

    pip install --no-deps "torch==2.6.0"
    python tools/cpu_torch.py

Package indexes that hold no CPU builds offer, for Linux on x86-64, builds of torch that depend on
gigabytes of CUDA libraries. Nothing in those is called where there is no CUDA device, but the
dynamic linker wants them there. So each library that torch's own name and that is missing gets a
stand-in of a few kilobytes beside them, whose functions all answer 100, "no CUDA device". Needs
the tools of binutils and a C compiler. For tests only.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

SYSTEM = re.compile(
    r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp.*|atomic|util|numa)\.so.*|ld-linux.*"
)


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def missing(folder: Path) -> dict[str, set[str]]:
    """The libraries that those in `folder` need and that are neither there nor the system's, each
    with the versions of symbols that are asked of it."""
    found: dict[str, set[str]] = defaultdict(set)
    for library in sorted(folder.glob("*.so*")):
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-dW", library)):
            if not SYSTEM.fullmatch(name) and not (folder / name).exists():
                found[name]
        file = ""
        for line in output_of("readelf", "-VW", library).splitlines():
            if match := re.search(r"File: (\S+)", line):
                file = match[1]
            elif file in found and (match := re.search(r"Name: (\S+)\s+Flags", line)):
                found[file].add(match[1])
    return found


def undefined(folder: Path) -> dict[str, set[str]]:
    """The symbols that no library in `folder` defines, by their version ("": they have none)."""
    defined, asked = set(), defaultdict(set)
    for library in folder.glob("*.so*"):
        for line in output_of("nm", "-DP", library).splitlines():
            name, kind = line.split()[:2]
            if kind in "Uw":
                symbol, _, version = name.partition("@")
                asked[version.lstrip("@")].add(symbol)
            else:
                defined.add(name.partition("@")[0])
    asked[""] -= defined
    return asked


def stand_in(path: Path, symbols: set[str], versions: dict[str, set[str]]) -> None:
    """Compile a library of functions that answer 100."""
    names = symbols.union(*versions.values())
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
        for version, names in sorted(versions.items())
        if names
    )
    with tempfile.TemporaryDirectory() as scratch:
        source, versioned = Path(scratch, "source.c"), Path(scratch, "versions.map")
        source.write_text("".join(f"long {name}() {{ return 100; }}\n" for name in sorted(names)))
        versioned.write_text(script)
        command = ["cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, source]
        subprocess.run(
            [*command, *([f"-Wl,--version-script={versioned}"] * bool(script))], check=True
        )


def main() -> None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("no torch is installed here")
    folder = Path(spec.origin).parent / "lib"
    libraries, symbols = missing(folder), undefined(folder)
    loose = {name for name in symbols[""] if re.match(r"(cu|nccl|nv|__cuda)", name)}
    for number, (name, versions) in enumerate(sorted(libraries.items())):
        stand_in(folder / name, loose if number == 0 else set(), {v: symbols[v] for v in versions})
    print(f"{len(libraries)} stand-ins for CUDA libraries in {folder}")


if __name__ == "__main__":
    main()
