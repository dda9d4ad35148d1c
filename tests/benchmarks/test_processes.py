"""Contenders in processes of their own: turns, memory, agreement, and those who fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _worker
from benchmarks._processes import Task, started
from benchmarks._worker import Contender
from examples._files import UserError


def recorder(name: str, path: str, number: float = 1.0) -> Contender:
    """Appends its name to a file whenever it runs."""

    def run() -> None:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(name)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise RuntimeError("no such luck")

    return Contender(
        {"run": run, "die": die, "fail": fail},
        results=lambda: {"number": torch.tensor([number])},
        facts={"threads": str(torch.get_num_threads())},
    )


def tasks(path: Path, **numbers: float) -> dict[str, Task]:
    maker = f"tests.benchmarks.{Path(__file__).stem}:recorder"
    return {
        name: Task(maker, {"name": name, "path": str(path), "number": number})
        for name, number in numbers.items()
    }


def test_contenders_take_turns_with_the_same_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    log = tmp_path / "log"
    with started(tasks(log, a=1.0, b=1.0)) as group:
        timings = group.time(["run"], rounds=3, warm_up=2)["run"]
        assert group.ask("about") == {"a": {"threads": "3"}, "b": {"threads": "3"}}
        group.assert_agree()
        assert group.left_out() == ""
    order = log.read_text(encoding="utf-8")
    assert order.startswith("abab")  # warm-up, once a turn
    rounds = order[4:]
    assert rounds.replace("a", "").strip("b") == "" and rounds.index("b") == rounds.count("a") // 3
    assert all(len(timings.seconds[name]) == 3 for name in "ab")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("number", [2.0, float("nan")])
def test_only_equals_are_compared(number: float, tmp_path: Path) -> None:
    with (
        started(tasks(tmp_path / "log", a=1.0, b=number)) as group,
        pytest.raises(AssertionError, match="b and a do not compute the same number"),
    ):
        group.assert_agree()


def test_who_fails_is_left_out_with_the_reason(tmp_path: Path) -> None:
    given = tasks(tmp_path / "log", a=1.0)
    broken = {"c": Task("tests.benchmarks.no_such_module:x", {})}
    with started({**given, **broken}, needed=["a"]) as group:
        assert list(group.processes) == ["a"]
        assert "No module named 'tests.benchmarks.no_such_module'" in group.left_out()
        group.processes["a"]("warm", "run")
        with pytest.raises(UserError, match="cannot measure a: RuntimeError: no such luck"):
            group.ask("warm", "fail")


def test_a_peer_that_dies_is_left_out(tmp_path: Path) -> None:
    with started(tasks(tmp_path / "log", b=1.0)) as group:
        assert group.time(["die", "run"], rounds=1)["run"].seconds == {}
        assert not group.processes
        assert "killed, perhaps for lack of memory" in group.left_out()


def test_a_python_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("")
    given = {"a": Task("x:y", {}, str(tmp_path / "python"))}
    with pytest.raises(OSError, match="Permission"), started(given):
        pass


def test_memory_is_that_of_the_run_with_what_it_remembers() -> None:
    cache: dict[str, Any] = {}
    size = 64 * 2**20

    def run() -> None:
        cache.setdefault("sorted", torch.ones(size // 4))
        torch.ones(size // 4)

    one = Contender({"run": run}, forget=cache.clear)
    one.warm("run")
    found = one.memory("run")
    assert found is not None
    assert 1.9 * size < found[0] < 2.5 * size < found[1]


def test_without_proc_memory_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise FileNotFoundError("/proc/self/status")

    monkeypatch.setattr(_worker, "resident_peak", missing)
    assert Contender({"run": lambda: None}).memory("run") is None


def test_the_median_of_several_where_a_run_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.02, 5.0, 0.04, 0.01, 0.03, 0.05])
    monkeypatch.setattr(_worker, "ASLEEP", 0)
    monkeypatch.setattr(_worker, "_seconds", lambda run: next(seconds))
    assert Contender({"run": lambda: None}).time("run") == 0.04  # the first one only warmed up


def test_layers_give_gradients_of_features_and_parameters_anew_each_time() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    one = _worker.of_layers({"linear": layer}, {"linear": layer}, torch.tensor([[3.0, 4.0]]))
    for _ in range(2):  # output 11, of which the gradient is 11 (that of half its square)
        found: Mapping[str, torch.Tensor] = one.results()
        assert found["output of linear"].tolist() == [[11.0]]
        assert found["gradient of linear"].tolist() == [[11.0, 22.0]]
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[33.0, 44.0]]
    one.forget()
    assert layer.weight.grad is None
