"""One table of several trainings, which are done once."""

import json

import pytest

from examples import citation_graphs
from examples.citation_graphs import main


@pytest.fixture
def trained(monkeypatch):
    """The trainings that the program asks for, answered by a file with made-up accuracies."""
    calls = []

    def train(words):
        calls.append(words)
        folder = words[words.index("--out") + 1]
        runs = int(words[words.index("--runs") + 1])
        worst = {"gat": 0.82, "gatv2": 0.825}[words[words.index("--model") + 1]]
        content = {"runs": [{"test_accuracy": worst + 0.01 * run} for run in range(runs)]}
        path = citation_graphs.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "metrics.json").write_text(json.dumps(content))
        (path / "checkpoint.pt").unlink(missing_ok=True)
        return 0

    monkeypatch.setattr(citation_graphs.node_classification, "main", train)
    return calls


WORDS = ["--models", "gat", "gatv2", "--datasets", "cora", "pubmed", "--runs", "2"]


def test_the_table(trained, tmp_path, capsys):
    assert main([*WORDS, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        "| test accuracy in % | Cora | Pubmed |\n"
        "| --- | --- | --- |\n"
        "| GAT, as published | 83.0 | 79.0 |\n"
        "| GAT, 2 seeds | 82.5 ± 0.7 | 82.5 ± 0.7 |\n"
        "| GATv2, 2 seeds | 83.0 ± 0.7 | 83.0 ± 0.7 |\n"
    )
    assert len(trained) == 4


def test_nothing_is_done_twice_and_what_was_interrupted_is_resumed(trained, tmp_path):
    main([*WORDS, "--out", str(tmp_path)])
    trained.clear()
    (tmp_path / "pubmed-gat" / "checkpoint.pt").touch()
    assert main([*WORDS, "--out", str(tmp_path)]) == 0
    assert [words[1] + words[3] for words in trained] == ["pubmedgat"]
    assert trained[0][-1] == "--resume"
    trained.clear()
    main([*WORDS[:-1], "3", "--out", str(tmp_path)])
    assert len(trained) == 4 and "--resume" not in trained[0]


def test_fewer_seeds_than_there_are_count_alone(trained, tmp_path, capsys):
    main([*WORDS, "--out", str(tmp_path)])
    capsys.readouterr()
    assert main([*WORDS[:-1], "1", "--out", str(tmp_path)]) == 0
    assert "| GAT, 1 seed | 82.0 | 82.0 |" in capsys.readouterr().out
    assert len(trained) == 4


def test_a_training_that_fails_stops_the_program(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(citation_graphs.node_classification, "main", lambda words: 130)
    assert main([*WORDS, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == ""


def test_wrong_options_are_told(capsys):
    assert main(["--models", "gcn"]) == 2
    assert "invalid choice: 'gcn'" in capsys.readouterr().err
