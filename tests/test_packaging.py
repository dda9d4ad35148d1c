"""What the package says of itself, and what holds of all files."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import attn_core
import gat
import sequence_attn
from attn_core.compat import TESTED

ROOT = Path(__file__).parents[1]
LIBRARY = ("attn_core", "sequence_attn", "gat")
TEXTS = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".sh", ".cff", ".cpp", ".h", ""}


def files(*folders: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a clone")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def requirements() -> list[str]:
    """What pyproject.toml asks for, extras included."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = text[text.index("\ndependencies = ") : text.index("\n[tool.scikit-build]")]
    return re.findall(r'"([\w-]+[<>=~!][^"]*)"', project)


def test_no_text_sends_a_reader_to_the_stranger_named_gat() -> None:
    wrong = re.compile(
        r"pip install[^\n`]*?[\s'\"=]gat(\[|[`'\"\s]|$)|(?<![\w-])gat\[(plot|gpu|dev|ex)"
    )
    for path in files():
        if path.suffix in TEXTS and path != Path(__file__):
            assert not wrong.search(path.read_text(encoding="utf-8")), path


def test_one_version_everywhere() -> None:
    assert gat.__version__ == sequence_attn.__version__ == attn_core.__version__
    assert version("gat-attention") == gat.__version__
    assert f"## [{gat.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {gat.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_lower_bounds_are_what_the_oldest_environment_installs() -> None:
    pinned = dict(
        line.replace("_", "-").split("==")
        for line in (ROOT / "tools/versions/oldest.txt").read_text().splitlines()
        if "==" in line
    )
    # Tools look at the code whatever it runs with; Lightning draws in all that torch asks for; the
    # tests of ONNX want the exporter of a newer torch
    apart = {"import-linter", "mypy", "ruff", "scikit-build-core"}
    apart |= {"lightning", "onnxruntime", "onnxscript"}
    for requirement in requirements():
        name, _, bound = requirement.partition(";")[0].partition(">=")
        if name not in apart:
            pin = pinned[name.replace("_", "-")]
            assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pin), requirement


def test_info_knows_the_series_that_are_tested() -> None:
    for end, name in enumerate(("oldest", "newest")):
        listed = (ROOT / f"tools/versions/{name}.txt").read_text()
        for package, series in TESTED.items():
            assert f"\n{package}=={series[end]}." in listed


def test_nothing_is_bounded_above() -> None:
    assert len(requirements()) > 20
    assert not any("<" in requirement for requirement in requirements())


def test_isinstance_takes_tuples() -> None:
    """Dynamo of torch 2.8 and older cannot trace `isinstance(x, A | B)`."""
    union = re.compile(r"isinstance\([^()]*(\([^()]*\))?[^()]*, [\w.]+ \| ")
    for path in files(*LIBRARY):
        if path.suffix == ".py":
            assert not union.search(path.read_text(encoding="utf-8")), path


def test_importing_draws_nothing_and_compiles_nothing() -> None:
    code = (
        "import sys, torch, torch_geometric; before = set(sys.modules); import gat, sequence_attn; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}), "
        "'torch._dynamo' in set(sys.modules) - before)"
    )
    ours = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *names, dynamo = ours.stdout.split()
    assert dynamo == "False"
    assert not {"matplotlib", "networkx", "sklearn", "huggingface_hub", "scipy"} & set(names)


def built_metadata(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a package index reads: METADATA of a wheel, built in `folder` without its kernels."""
    from scikit_build_core.build import build_wheel

    monkeypatch.chdir(ROOT)
    wheel = build_wheel(str(folder), {"wheel.cmake": "false", "wheel.py-api": "py3"})
    info = f"gat_attention-{gat.__version__}.dist-info/METADATA"
    return zipfile.ZipFile(folder / wheel).read(info).decode()


def test_the_released_readme_shows_its_pictures_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAT_REPOSITORY", "https://example.org/gat/")
    text, tag = built_metadata(tmp_path, monkeypatch), f"v{gat.__version__}"
    assert f"](https://example.org/gat/raw/{tag}/docs/images/embedding.png)" in text
    assert f"](https://example.org/gat/blob/{tag}/CONTRIBUTING.md)" in text
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)
    for link in ("Repository, https://example.org/gat", "Issues, https://example.org/gat/issues"):
        assert f"Project-URL: {link}\n" in text


def test_a_package_built_elsewhere_names_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GAT_REPOSITORY", raising=False)
    text = built_metadata(tmp_path, monkeypatch)
    assert f"\nVersion: {gat.__version__}\n" in text and "\nProject-URL" not in text
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in text
