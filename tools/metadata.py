"""What the built package says of itself that does not stand in pyproject.toml: its version, and
the README with absolute links, so that a package index shows its pictures.

The environment variable `GAT_REPOSITORY` gives the address of the repository; without it the
README's links stay relative and the package names no repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)(\[[^\[\]]*\])\((?!\w+:|#)([^)\s]+)\)")


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `project.dynamic`; scikit-build-core calls this."""
    source = (ROOT / "attn_core/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert version is not None
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    repository = os.environ.get("GAT_REPOSITORY", "").rstrip("/")
    return {
        "version": version[1],
        "readme": {
            "content-type": "text/markdown",
            "text": absolute(readme, repository, f"v{version[1]}") if repository else readme,
        },
        "urls": links(repository) if repository else {},
    }


def absolute(markdown: str, repository: str, revision: str) -> str:
    """The text with its relative links and pictures at that revision of the repository."""
    return LINK.sub(
        lambda link: (
            f"{link[1]}{link[2]}({repository}/{'raw' if link[1] else 'blob'}/{revision}/{link[3]})"
        ),
        markdown,
    )


def links(repository: str) -> dict[str, str]:
    return {
        "Repository": repository,
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
