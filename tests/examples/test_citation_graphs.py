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
        mean = {"gat": 0.825, "gatv2": 0.83}[words[words.index("--model") + 1]]
        content = {
            "runs": [{}] * runs,
            "summary": {"test_accuracy": {"mean": mean, "std": 0.0064 if runs > 1 else None}},
        }
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
        "| GAT, 2 seeds | 82.5 ± 0.6 | 82.5 ± 0.6 |\n"
        "| GATv2, 2 seeds | 83.0 ± 0.6 | 83.0 ± 0.6 |\n"
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


def test_a_training_that_fails_stops_the_program(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(citation_graphs.node_classification, "main", lambda words: 130)
    assert main([*WORDS, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == ""


def test_wrong_options_are_told(capsys):
    assert main(["--models", "gcn"]) == 2
    assert "invalid choice: 'gcn'" in capsys.readouterr().err
