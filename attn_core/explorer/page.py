"""One HTML file of the parts in `assets`: markup, style, modules and data, and nothing else.

The modules are plain ES modules without a library: what the page draws are rectangles, curves and
text, which SVG and canvas have, so that d3 would add more bytes than it saves lines. `bundle` makes
one script of them. A Content-Security-Policy in the page lets only that script run, by its hash,
and nothing be loaded; the data is JSON in which no tag can begin, and its names are set as text.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

ASSETS = Path(__file__).parent / "assets"
LARGEST = 500_000  # bytes of a page
LANGUAGES = ("en", "zh")
EXAMPLES = ("sentence", "decoder", "graph", "dictionary")
# Each after those that it imports
MODULES = (
    "formulas", "dom", "colours", "i18n", "examples", "model", "app", "parts", "matrix", "arcs",
    "network", "plane", "arithmetic", "steps", "compare", "tables", "controls", "main",
)  # fmt: skip

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.M)
_EXPORT = re.compile(r"^export (?=(?:const|function|class) (\w+))", re.M)


class Layer(NamedTuple):
    """The weights of one layer.

    Attributes:
        name: what the page calls it.
        weights: `[H, Tq, Tk]`, or `[E, H]` where there are edges.
        edges: `[2, E]`, keys and queries. Default: every query with every key.
    """

    name: str
    weights: NDArray[Any]
    edges: NDArray[Any] | None = None


def computing_page(example: str = "sentence", language: str | None = None) -> str:
    """The page that computes attention in the browser.

    Args:
        example: what it begins with: "sentence" (default), "decoder", "graph" or "dictionary".
        language: "en" or "zh". Default: that of the browser.

    Returns:
        The text of an HTML file.

    Raises:
        ValueError: an example or a language that it does not have.

    >>> computing_page("dictionary")[:15]
    '<!doctype html>'
    """
    if example not in EXAMPLES:
        raise ValueError(f"example is {example!r}; expected one of {', '.join(EXAMPLES)}")
    return _page({"kind": "compute", "example": example}, None, language)


def weights_page(
    layers: Sequence[Layer],
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    title: str | None = None,
    language: str | None = None,
    **others: Any,
) -> str:
    """The page that shows given weights.

    Args:
        layers: one or more, over the same queries and keys.
        queries: the name of each.
        keys: likewise. Default: the queries are the keys.
        title: the heading. Default: "Attention explorer", in the reader's language.
        language: "en" or "zh". Default: that of the browser.
        others: what else the page knows of nodes: graph, classes, classNames, colours, positions.

    Returns:
        The text of an HTML file.

    Raises:
        ValueError: a language that it does not have, or a page of more than 500 kB.
    """
    data = {
        "kind": "weights",
        "title": title,
        "shared": keys is None,
        "queries": list(queries),
        "keys": None if keys is None else list(keys),
        "layers": [_layer(layer) for layer in layers],
        **others,
    }
    return _page(data, title, language)


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """Write a page in one step: at `path` there is the old file or the new one, whatever happens.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_page(f"{folder}/page.html", computing_page()).name
    'page.html'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def bundle(modules: Sequence[str] = MODULES) -> str:
    """One script of ES modules, each in a scope of its own.

    >>> bundle(["formulas"]).splitlines()[0]
    'const module_formulas = (() => {'
    """
    parts = []
    for name in modules:
        text = (ASSETS / f"{name}.js").read_text(encoding="utf-8")
        exported = ", ".join(_EXPORT.findall(text))
        text = _IMPORT.sub(r"const \1 = module_\2;", text)
        text = _EXPORT.sub("", text)
        parts.append(f"const module_{name} = (() => {{\n{text}return {{ {exported} }};\n}})();\n")
    return "".join(parts)


def _layer(layer: Layer) -> dict[str, Any]:
    weights, edges = layer.weights, layer.edges
    single = weights.astype("<f4")
    exact = bool((single.astype("<f8") == weights).all())  # as float32 weights are
    return {
        "name": layer.name,
        "heads": weights.shape[0 if edges is None else 1],
        "weights": _packed("f4", single) if exact else _packed("f8", weights.astype("<f8")),
        "edges": None if edges is None else _packed("i4", edges.astype("<i4")),
    }


def _packed(dtype: str, array: NDArray[Any]) -> dict[str, str]:
    return {"dtype": dtype, "base64": base64.b64encode(array.tobytes()).decode()}


def _page(data: dict[str, Any], title: str | None, language: str | None) -> str:
    if language is not None and language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; expected 'en', 'zh' or None, the browser's")
    given = {
        name: value for name, value in {**data, "language": language}.items() if value is not None
    }
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    script = bundle()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title or "Attention explorer").encode("utf-8", "replace").decode(),
        "style": style,
        "script": script,
        "data": _json(given),
    }
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    size = len(text.encode())
    if size > LARGEST:
        raise ValueError(
            f"the page would have {size:,} bytes, more than {LARGEST:,}: pass fewer heads "
            "(weights[:1]), fewer layers or a part of the queries and keys"
        )
    return text


def _json(data: dict[str, Any]) -> str:
    """JSON without "<", so that no name can end its element; half a character is an escape."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return text.encode("utf-8", "backslashreplace").decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
