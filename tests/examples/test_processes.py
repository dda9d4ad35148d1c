"""The programs in several processes, as torchrun starts them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from examples import node_classification, translation
from examples.shared.files import load_checkpoint

ROOT = Path(__file__).parents[2]
NODES = ["--dataset", "karate", "--runs", "1", "--hidden", "4", "--heads", "2", "--dropout", "0"]
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and Path("/proc/self").exists()),
    reason="needs torch.distributed with gloo, and Linux",
)


def start(
    program: str, options: list[str], out: Path, world: int = 2, restarts: int = 0
) -> subprocess.Popen[str]:
    """The program in processes of its own, on this machine alone."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch.append(f"--max-restarts={restarts}")
    names = [f"--nproc-per-node={world}", "-m", f"examples.{program}"]
    return subprocess.Popen(
        [*launch, *names, *options, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    """How it ended; all its processes are killed if it does not."""
    try:
        printed, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, printed, errors


def run_of(folder: Path) -> dict[str, Any]:
    """What the only run of a training came to."""
    (run,) = json.loads((folder / "metrics.json").read_text())["runs"]
    return {name: value for name, value in run.items() if "seconds" not in name}


def alone(options: list[str], out: Path) -> dict[str, Any]:
    assert node_classification.main([*options, "--out", str(out)]) == 0
    return run_of(out)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--epochs", "5"], id="parts"),
        pytest.param(
            ["--epochs", "2", "--sampled", "5", "3", "--batch-size", "3"],
            id="samples",
        ),
    ],
)
def test_two_processes_train_as_one(tmp_path: Path, options: list[str]) -> None:
    code, printed, errors = ended(start("node_classification", NODES + options, tmp_path / "two"))
    assert code == 0, errors[:3000]
    assert printed.count("nodes to train / validate / test") == 1  # one of them prints
    expected = alone(NODES + options, tmp_path / "one")
    assert run_of(tmp_path / "two") == pytest.approx(expected, abs=1e-5)
    assert {file.name for file in (tmp_path / "two").iterdir()} == {
        file.name for file in (tmp_path / "one").iterdir()
    }


def process_of(parent: int, rank: int) -> int:
    """The process of that rank below torchrun's."""
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
                return pid
    raise AssertionError("no such process")


LONG = [*NODES, "--epochs", "60", "--patience", "60", "--checkpoint-every", "1"]


def killed(out: Path, restarts: int = 0) -> tuple[int, str, str]:
    """How a training ends, of which the second process is killed after the first checkpoint."""
    process, checkpoint = (
        start("node_classification", LONG, out, restarts=restarts),
        out / "checkpoint.pt",
    )
    limit = time.monotonic() + 90
    while not checkpoint.exists() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.01)
    os.kill(process_of(process.pid, 1), signal.SIGKILL)
    return ended(process)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes come to that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, errors = ended(start("node_classification", LONG, folder))
    assert code == 0, errors[:3000]
    return run_of(folder)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_nothing_is_lost(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    code, _, errors = killed(tmp_path / "two")
    checkpoint = tmp_path / "two/checkpoint.pt"
    assert code != 0
    assert "another process of this training has ended" in errors or "SIGKILL" in errors
    any_layout = {"config": dict, "results": list, "best": object, "run": dict}
    state = load_checkpoint(checkpoint, any_layout)
    assert 1 <= state["run"]["epoch"] < 60
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    code, _, errors = ended(start("node_classification", [*LONG, "--resume"], tmp_path / "two"))
    assert code == 0, errors[:3000]
    assert run_of(tmp_path / "two") == undisturbed  # with as many processes, to the bit
    assert alone([*LONG, "--resume"], tmp_path / "one") == pytest.approx(undisturbed, abs=1e-6)


@pytest.mark.slow
def test_torchrun_starts_all_anew_from_the_checkpoint(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    code, printed, errors = killed(tmp_path, restarts=1)
    assert code == 0, errors[:3000]
    assert printed.count("nodes to train / validate / test") == 2  # before and after
    assert run_of(tmp_path) == undisturbed


def test_two_processes_translate_as_one(tmp_path: Path) -> None:
    words = ["".join(letters) for letters in itertools.product("abc", repeat=4)]
    for name, lines in (("there", words), ("back", [word[::-1] for word in words])):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    options = ["train", "--data", str(tmp_path / "there"), str(tmp_path / "back")]
    options += ["--unit", "characters", "--embedding-size", "8", "--state-size", "8"]
    options += ["--layers", "1", "--min-count", "1", "--batch-tokens", "100", "--epochs", "2"]
    options += ["--dropout", "0", "--no-baseline"]
    code, printed, errors = ended(start("translation", options, tmp_path / "two"))
    assert code == 0, errors[:3000]
    assert printed.count("metrics and pictures are in") == 1
    assert translation.main([*options, "--out", str(tmp_path / "one")]) == 0
    two, one = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("two", "one")
    )
    assert len(two["history"]) == 2
    for found, expected in zip(two["history"], one["history"], strict=True):
        for name in ("train_loss", "valid_perplexity"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_small_graphs_are_not_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dataset", "digits", "--sampled", "5", "--layers", "2", "--out", str(tmp_path)]
    assert node_classification.main(options) == 2
    assert "--sampled has 1 numbers, but the model has 2 layers" in capsys.readouterr().err
