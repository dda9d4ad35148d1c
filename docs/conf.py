"""How `make docs` builds the site: Sphinx with furo, Markdown by myst-nb, the API by docstrings."""

from __future__ import annotations

import importlib
import os
import re
from inspect import ismodule
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = (
    "attn_core",
    "sequence_attn",
    "sequence_attn.seq2seq",
    "sequence_attn.distributed",
    "gat",
    "gat.models",
    "gat.distributed",
    "gat.loader",
    "gat.transforms",
)

project = "gat"
author = "The gat authors"
project_copyright = "2026, The gat authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "gat: attention for sequences and graphs"
html_static_path: list[str] = []
exclude_patterns = ["_build"]
templates_path: list[str] = []
language = "en"
default_role = "code"  # of a docstring's `single backticks`
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run every snippet
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
autosummary_generate = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the signature
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Where links to files lead that are no pages, such as ../benchmarks/results/sequence.md
REPOSITORY = os.environ.get("GAT_REPOSITORY", "").rstrip("/")


def api_pages() -> None:
    """Write a page for each package that lists its public names; each of these gets its own."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    seen: set[int] = set()
    for name in PACKAGES:
        package = importlib.import_module(name)
        assert package.__doc__ is not None
        public = {one: getattr(package, one) for one in package.__all__}
        # What is no class, function or module, such as a version or a table, has no docstring
        described = {n: id(it) for n, it in public.items() if callable(it) or ismodule(it)}
        names = [name for name, it in described.items() if it not in seen]
        seen |= set(described.values())
        lines = [
            f"# {name}",
            "",
            package.__doc__,
            "",
            f"```{{eval-rst}}\n.. currentmodule:: {name}\n\n.. autosummary::\n   :toctree: .",
            "",
            *(f"   {one}" for one in names),
            "```",
        ]
        page = folder / f"{name}.md"
        text = "\n".join(lines) + "\n"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def join_names(
    app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """Put the names of arguments that share a text on one line, as napoleon expects them."""
    text = "\n".join(lines)
    names = re.compile(
        r"^(    (?:[*\w…]+, )*[*\w…]+,)\n {4,}(?=(?:[*\w…]+, ?)*\n?[*\w…, ]*:)", re.M
    )
    while (joined := names.sub(r"\1 ", text)) != text:
        text = joined
    lines[:] = text.split("\n")


def lead_to_sources(app: Any, page: str, source: list[str]) -> None:
    """Let links to files that are no pages lead into the repository, or say what the file is."""
    link = re.compile(r"\[([^\[\]]+)\]\((\.\./[^)#]+)[^)]*\)")
    target = rf"[\1]({REPOSITORY}/blob/main/docs/\2)" if REPOSITORY else r"\1 (`\2`)"
    source[0] = link.sub(target, source[0]).replace("`../", "`")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    api_pages()
    app.connect("autodoc-process-docstring", join_names, priority=400)  # before napoleon
    app.connect("source-read", lead_to_sources)
