"""The documentation site: every page is reached, every public name has one."""

from __future__ import annotations

import importlib
import re
import runpy
from inspect import ismodule
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONF = runpy.run_path(str(DOCS / "conf.py"))


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in ("index.md", "api.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / page).read_text(), re.S):
            listed |= {line for line in tree.split() if not line.startswith(":")}
    assert {path.stem for path in DOCS.glob("*.md")} <= listed
    assert {f"api/{name}" for name in CONF["PACKAGES"]} <= listed


def test_every_public_name_has_a_page(tmp_path: Path) -> None:
    CONF["api_pages"].__globals__["HERE"] = tmp_path
    CONF["api_pages"]()
    named = "".join(page.read_text() for page in (tmp_path / "api").iterdir())
    for package in ("attn_core", "sequence_attn", "sequence_attn.seq2seq", "gat", "gat.models"):
        assert package in CONF["PACKAGES"]
        module = importlib.import_module(package)
        for name in module.__all__:
            described = callable(it := getattr(module, name)) or ismodule(it)
            assert not described or f"\n   {name}\n" in named, name


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("Args:\n    a, b,\n        c: both.", "Args:\n    a, b, c: both."),
        (
            "Args:\n    a: one,\n        two: no names.",
            "Args:\n    a: one,\n        two: no names.",
        ),
    ],
)
def test_names_that_share_a_text_stand_on_one_line(text: str, joined: str) -> None:
    lines = text.split("\n")
    CONF["join_names"](None, "function", "f", None, None, lines)
    assert "\n".join(lines) == joined
