"""Installed without a compiler the library works all the same, unless kernels are required."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from attn_core import compiled

ROOT = Path(__file__).parents[2]
OUTSIDE = "No matching distribution", "Could not fetch", "ConnectionError", "Failed to establish"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GAT_")}
    env |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=env, cwd=ROOT / "docs"
    )


def install(into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Install the library where no compiler works; skip where its build tools cannot be had."""
    found = run(
        *(sys.executable, "-m", "pip", "--python", into, "install", "--no-deps", ROOT),
        *("-C", f"build-dir={into / 'build'}"),
        CXX="false", CC="false", **environment,
    )  # fmt: skip
    said = found.stdout + found.stderr
    if found.returncode and any(words in said for words in OUTSIDE):
        pytest.skip("the build tools cannot be had")
    if found.returncode and "No module named pip" in said:
        pytest.skip("there is no pip")
    return found


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without packages of its own."""
    folder = tmp_path_factory.mktemp("without-compiler")
    venv.create(folder, with_pip=False)
    return folder


@pytest.mark.slow
def test_without_a_compiler_it_installs_and_plain_torch_serves(prefix: Path) -> None:
    found = install(prefix)
    assert found.returncode == 0, found.stdout + found.stderr
    python = prefix / "bin" / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
    # The other packages are those of this environment, wherever it has them; gat is its own
    others = [folder for folder in sys.path if Path(folder).name == "site-packages"]
    (Path(purelib.strip()) / "others.pth").write_text("\n".join(others))
    code = """
import torch, attn_core
from attn_core.backends import cpu
from attn_core import compiled
assert attn_core.__file__.startswith({prefix!r}), attn_core.__file__
assert compiled.module is None and not cpu.available()
x = torch.randn(4, 2, 4, requires_grad=True)
edges = attn_core.Edges.from_edge_index(torch.tensor([[0, 1, 2], [1, 1, 3]]))
out = attn_core.attend(x, x, x, score=attn_core.ScaledDot(), support=edges).output
out.sum().backward()
print(attn_core.scatter_softmax(torch.zeros(2), torch.zeros(2, dtype=torch.int64)).tolist())
"""
    works = run(python, "-c", code.format(prefix=str(prefix)))
    assert works.stdout.strip() == "[0.5, 0.5]", works.stderr
    told = run(python, "-m", "attn_core.info").stdout
    assert "not there" in told and "plain torch serves" in told
    required = run(python, "-c", "import attn_core", GAT_REQUIRE_KERNELS="1")
    assert required.returncode
    assert (
        "GAT_REQUIRE_KERNELS is set, but the compiled kernels cannot be loaded" in required.stderr
    )


@pytest.mark.skipif(compiled.module is None, reason="no compiled kernels")
def test_an_instruction_set_can_be_forced() -> None:
    told = run(sys.executable, "-m", "attn_core.info", GAT_INSTRUCTION_SET="baseline").stdout
    assert "CPU kernels: baseline (forced by GAT_INSTRUCTION_SET)" in told
    before = compiled.module.instruction_set()
    with pytest.raises(ValueError, match=r"is .sse9.; this processor has .*baseline"):
        compiled._force("sse9")
    assert compiled.module.instruction_set() == before
    assert before in compiled.module.instruction_sets()


@pytest.mark.slow
def test_kernels_that_are_required_fail_the_installation(prefix: Path) -> None:
    found = install(prefix, GAT_REQUIRE_KERNELS="1")
    assert found.returncode
    said = found.stdout + found.stderr
    assert "The compiled kernels could not be built: they need a C++17 compiler" in said
    assert "Without GAT_REQUIRE_KERNELS=1" in said
