"""How `make docs` builds the site: Sphinx with furo, Markdown by myst-nb, the API by docstrings.

What it writes beside the pages (the API, the benchmarks, notebooks to download) is in .gitignore.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from inspect import ismodule
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "benchmarks" / "results"
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
    "gat.plot",
    "sequence_attn.plot",
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
html_extra_path = ["_extra"]  # copied as it is
exclude_patterns = ["_build", "notebooks/download"]
templates_path: list[str] = []
language = "en"
default_role = "code"  # of a docstring's `single backticks`
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # of docs/notebooks; what stands on other pages is run by the tests
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell; it is for a busy machine
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
linkcheck_timeout = 30
linkcheck_retries = 2
linkcheck_anchors = False  # those of the site itself are checked by the tests
# Where links to files lead that are no pages, such as ../attn_core/attend.py
REPOSITORY = os.environ.get("GAT_REPOSITORY", "").rstrip("/")
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(((?!\w+:|#)[^()\s#]+)(#[^()\s]*)?\)")


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
        write(folder / f"{name}.md", "\n".join(lines) + "\n")


def explorer_page() -> None:
    """Write the attention explorer that computes, beside which the page `explorer` stands."""
    explorer = importlib.import_module("attn_core.explorer")
    (HERE / "_extra").mkdir(exist_ok=True)
    explorer.write_page(HERE / "_extra" / "attention-explorer.html", explorer.computing_page())


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


def result_page(path: Path) -> str:
    """The page that shows a file of benchmarks/results."""
    return "-".join(path.relative_to(RESULTS).with_suffix("").parts)


def benchmark_pages() -> None:
    """Put what was measured beside the pages, with its plots."""
    folder = HERE / "benchmarks"
    folder.mkdir(exist_ok=True)
    for path in RESULTS.rglob("*.md"):
        write(folder / f"{result_page(path)}.md", path.read_text(encoding="utf-8"))
    for path in RESULTS.rglob("*.png"):
        shutil.copy(path, folder)


def download_notebooks() -> None:
    """Make an .ipynb of each page of docs/notebooks that has code, to be downloaded."""
    import jupytext

    folder = HERE / "notebooks" / "download"
    folder.mkdir(exist_ok=True)
    for page in (HERE / "notebooks").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if "```{code-cell}" not in text:
            continue
        # A notebook lies in a folder of the reader's, where relative links lead nowhere
        book = jupytext.reads(lead(text, page.parent, pages=False), fmt="md:myst")
        for number, cell in enumerate(book.cells):
            cell["id"] = f"cell-{number}"  # else each is drawn anew in each build
        write(folder / f"{page.stem}.ipynb", jupytext.writes(book, fmt="ipynb"))


def write(path: Path, text: str) -> None:
    """Leave a file alone that says this already: Sphinx reads what is newer than its last build."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def lead(text: str, folder: Path, *, pages: bool = True) -> str:
    """Let links to files that are no pages lead into the repository, or say what the file is.

    Args:
        text: Markdown.
        folder: where it stands.
        pages: leave links to other pages as they are, which else are no pages either.
    """

    def target(link: re.Match[str]) -> str:
        image, name, path, anchor = link[1], link[2], (folder / link[3]).resolve(), link[4] or ""
        if pages and path.suffix == ".md" and path.is_relative_to(RESULTS):
            path = HERE / "benchmarks" / f"{result_page(path)}.md"
            return f"[{name}]({os.path.relpath(path, folder)}{anchor})"
        if image or (pages and path.is_relative_to(HERE)):
            return link[0]
        path = path.relative_to(ROOT)
        if REPOSITORY:
            return f"[{name}]({REPOSITORY}/blob/main/{path}{anchor})"
        return f"{name} (`{path}`)" if str(path) not in name else name

    return LINK.sub(target, text)


def before_reading(app: Any, page: str, source: list[str]) -> None:
    """Links to sources, and of a notebook one to download it by."""
    source[0] = lead(source[0], (HERE / page).parent)
    if "```{code-cell}" in source[0]:
        link = f"{{download}}`Download as a notebook <download/{Path(page).name}.ipynb>`"
        source[0] = re.sub(r"^# .+$", rf"\g<0>\n\n{link}", source[0], count=1, flags=re.M)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    # Notebooks run in processes of their own
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    api_pages()
    benchmark_pages()
    download_notebooks()
    explorer_page()
    app.connect("autodoc-process-docstring", join_names, priority=400)  # before napoleon
    app.connect("source-read", before_reading)
