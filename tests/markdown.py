"""Reading the repository's Markdown, for the tests of the site."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = [DOCS / name for name in ("api", "benchmarks", "_build")]  # by docs/conf.py
BLOCK = re.compile(r"^ *(`{3,})(.*?)\n(.*?)^ *\1 *$", re.M | re.S)


def pages() -> list[Path]:
    """Those of the site that lie in the repository."""
    found = DOCS.rglob("*.md")
    return sorted(p for p in found if not any(p.is_relative_to(folder) for folder in GENERATED))


def prose(text: str) -> str:
    """The text without its blocks of code and formulas."""
    return BLOCK.sub("", text)


def blocks(text: str, kind: str) -> list[str]:
    """The contents of the blocks of a kind, such as "python"."""
    return [match[3] for match in BLOCK.finditer(text) if match[2].strip() == kind]


def headings(text: str) -> list[tuple[int, str]]:
    """Level and title of each."""
    found = re.findall(r"^(#+) +(.+?) *$", prose(text), re.M)
    return [(len(level), title) for level, title in found]


def anchors(text: str) -> set[str]:
    """The names by which GitHub, and Sphinx here, link to the headings."""
    names: set[str] = set()
    for _, title in headings(text):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        names.add(next(n for n in (name, *(f"{name}-{i}" for i in range(1, 99))) if n not in names))
    return names


def sections(text: str) -> list[str]:
    """What stands below each heading of the second level."""
    return re.split(r"^## ", text, flags=re.M)[1:]
