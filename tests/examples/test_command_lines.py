"""A command line is answered before torch is imported, and says what the library says."""

import json
import subprocess
import sys

import pytest

from attn_core import Normalizer, Score
from attn_core.explorer import page
from datasets.files import TASKS
from examples._nodes import MODELS as GRAPH_MODELS
from examples.commands import explorer, node_classification, tagging, translation, tuned_tables
from examples.long_sentences import ANSWERS
from examples.tagging import MODELS as TAGGERS
from gat.models import PRESETS
from sequence_attn.seq2seq.models import POSITIONS

PROGRAMS = {
    "attention_or_not": (),
    "attention_tour": (),
    "captioning": ("train", "ask"),
    "citation_graphs": (),
    "dictionary_lookup": ("train", "ask"),
    "explain": (),
    "explorer": (),
    "graph_classification": (),
    "inflection": (),
    "link_prediction": (),
    "long_sentences": ("train", "ask"),
    "node_classification": ("train", "predict"),
    "sentiment": ("train", "predict"),
    "sequence_as_graph": (),
    "tagging": ("train", "predict"),
    "translation": ("train", "translate", "evaluate"),
    "tuned_tables": (),
}
WITHOUT_TORCH = """
import json, runpy, sys
program, lines = json.loads(sys.argv[1])
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "matplotlib", "sklearn", "scipy"):
            raise ImportError(f"{name} was asked for")
sys.meta_path.insert(0, Blocked())
for words in lines:
    sys.argv = ["examples", *words]
    try:
        runpy.run_module(f"examples.{program}", run_name="__main__")
    except SystemExit as end:
        print("ended with", end.code)
"""


def without_torch(program, lines):
    """Runs a program with one command line after another, where nothing slow can be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps([program, lines])]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_mistakes_are_answered_without_torch(program):
    commands = [[command] for command in PROGRAMS[program]] or [[]]
    lines = [[*command, "--help"] for command in commands]
    lines += [[*command, "--no-such-option"] for command in commands]
    done = without_torch(program, lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended with 0") == done.stdout.count("usage:") == len(commands)
    assert done.stdout.count("ended with 2") == len(commands)
    assert done.stderr.count("error: ") == len(commands)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("node_classification", ["--edges", "gone.csv", "--labels", "gone.csv"]),
        ("sentiment", ["--data", "gone.csv"]),
        ("tagging", ["--conllu", "gone.conllu", "gone.conllu"]),
        ("translation", ["train", "--data", "gone.de", "gone.en"]),
        ("long_sentences", ["--data", "gone.de", "gone.en"]),
        ("inflection", ["--data", "gone.train", "gone.dev", "gone.test"]),
        ("explain", ["--edges", "gone.csv", "--labels", "gone.csv"]),
        (
            "node_classification",
            ["predict", "--edges", "gone.csv", "--model", "m", "--output", "o"],
        ),
        ("sentiment", ["predict", "--file", "gone.txt", "--model", "m"]),
        ("tagging", ["predict", "--file", "gone.txt", "--model", "m"]),
        ("translation", ["translate", "--file", "gone.txt", "--model", "m"]),
    ],
)
def test_a_missing_file_is_named_without_torch(program, words):
    done = without_torch(program, [words])
    assert done.stdout == "ended with 2\n"
    assert "'gone." in done.stderr


def test_the_names_are_those_of_the_library():
    assert {*translation.SCORES} == {*Score.named, "local-m", "local-p", "hard"}
    assert {*node_classification.SCORES} == {*Score.named} - {"location"}
    assert (*Normalizer.named,) == node_classification.NORMALIZERS
    assert {*translation.NORMALIZERS} <= {*Normalizer.named}
    assert translation.POSITIONS == POSITIONS
    assert node_classification.TASKS == TASKS
    assert {*node_classification.CHOICES} <= {*GRAPH_MODELS}
    assert (*TAGGERS,) == tagging.MODELS
    assert (explorer.EXAMPLES, explorer.LANGUAGES) == (page.EXAMPLES, page.LANGUAGES)
    assert {*ANSWERS} == {"copy", "reverse", "sort"}
    assert {*tuned_tables.PRESETS} == {name for name, _ in PRESETS}
    assert (*tuned_tables.GRAPHS,) == tuple(g for name, g in PRESETS if name == "tuned-gat")
