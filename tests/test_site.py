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
MARKDOWN = runpy.run_path(str(Path(__file__).parent / "markdown.py"))


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in (*MARKDOWN["pages"](), DOCS / "api.md"):
        folder = page.parent.relative_to(DOCS)
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.S):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            names = [re.sub(r".*<(.+)>", r"\1", line) for line in lines]
            listed |= {str(folder / name) for name in names}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in MARKDOWN["pages"]()}
    assert pages <= listed
    assert {f"api/{name}" for name in CONF["PACKAGES"]} <= listed
    results = CONF["RESULTS"].rglob("*.md")
    assert {f"benchmarks/{CONF['result_page'](path)}" for path in results} <= listed


def test_the_guides_that_a_reader_looks_for_are_there() -> None:
    index = (DOCS / "index.md").read_text()
    guides = "getting-started three-axes graphs sequences seq2seq scaling gpu own-data migrating"
    for name in (*guides.split(), "benchmarks", "changelog", "api", "notebooks/index"):
        assert re.search(rf"^{name}$", index, re.M), name
    assert "## A score of your own" in (DOCS / "three-axes.md").read_text()


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("[a](../attn_core/attend.py)", "a (`attn_core/attend.py`)"),
        ("[attn_core/scores.py](../attn_core/scores.py)", "attn_core/scores.py"),
        ("[t](../benchmarks/results/graph.md)", "[t](benchmarks/graph.md)"),
        ("[b](scaling.md#what-is-sent)", "[b](scaling.md#what-is-sent)"),
        ("![c](../benchmarks/results/x.png)", "![c](../benchmarks/results/x.png)"),
        ("[d](https://example.org/e)", "[d](https://example.org/e)"),
    ],
)
def test_links_to_what_is_no_page_lead_to_the_repository(link: str, leads: str) -> None:
    assert CONF["lead"](link, DOCS) == leads


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
