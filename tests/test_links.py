"""Links inside the repository's Markdown lead somewhere; `make docs-links` asks the others."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

MARKDOWN = runpy.run_path(str(Path(__file__).parent / "markdown.py"))
ROOT, anchors, pages, prose = (MARKDOWN[n] for n in ("ROOT", "anchors", "pages", "prose"))
FILES = sorted([*ROOT.glob("*.md"), *pages(), *(ROOT / "benchmarks" / "results").rglob("*.md")])
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?[^()\s]*)\)")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in LINK.findall(prose(path.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_an_anchor_is_named_as_github_names_it() -> None:
    text = "# A `b`: c–d\n## 2. Query, key 查询、键\n```\n# no heading\n```\n## Twice\n## Twice\n"
    assert anchors(text) == {"a-b-cd", "2-query-key-查询键", "twice", "twice-1"}
