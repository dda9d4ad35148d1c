"""The Chinese texts keep in step with the English ones, and every exercise has its answer."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

MARKDOWN = runpy.run_path(str(Path(__file__).parent / "markdown.py"))
ROOT, blocks, headings, prose, sections = (
    MARKDOWN[name] for name in ("ROOT", "blocks", "headings", "prose", "sections")
)
PAIRS = [
    ("README.md", "README.zh-CN.md"),
    ("docs/from-formula-to-code.md", "docs/zh/from-formula-to-code.md"),
    ("docs/answers.md", "docs/zh/answers.md"),
]
EXERCISE = re.compile(r"^\d+\. ", re.M)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(text: str) -> list[list[str]]:
    """All snippets without what comments say, which is translated."""
    kinds = ("python", "diff", "")
    return [[re.sub(r"# .*", "#", b) for b in blocks(text, kind)] for kind in kinds]


def formulas(text: str) -> list[str]:
    """All formulas without their words."""
    found = blocks(text, "math") + re.findall(r"(?<!\$)\$[^$\n]+\$(?!\$)", prose(text))
    return [re.sub(r"\\text\{[^}]*\}", "", formula) for formula in found]


def tables(text: str) -> list[list[list[str]]]:
    """The numbers in each cell of each row of each table."""
    rows = re.findall(r"^ *\|(.+)\| *$", prose(text), re.M)
    cells = [re.split(r"(?<!\\)\|", row) for row in rows]
    # A million is counted in units of ten thousand
    number = re.compile(r"\d[\d,.]*\d|\d")
    plain = [[re.sub(r"[\d.]+ (million|万)", "", cell) for cell in row] for row in cells]
    return [[sorted(number.findall(cell)) for cell in row] for row in plain]


def pictures(text: str) -> list[str]:
    return [Path(path).name for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)]


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=[english for english, _ in PAIRS])
def test_both_say_the_same(english: str, chinese: str) -> None:
    ours, theirs = read(english), read(chinese)
    assert [level for level, _ in headings(ours)] == [level for level, _ in headings(theirs)]
    for parts in (code, formulas, tables, pictures):
        assert parts(ours) == parts(theirs), parts.__name__
    for a, b in zip(sections(ours), sections(theirs), strict=True):
        assert len(EXERCISE.findall(prose(a))) == len(EXERCISE.findall(prose(b))), a[:40]


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_every_exercise_has_an_answer_with_code(folder: str) -> None:
    steps = sections(read(f"{folder}/from-formula-to-code.md"))
    answers = sections(read(f"{folder}/answers.md"))
    for step, answer in zip(steps, answers, strict=True):
        asked = EXERCISE.findall(step.rpartition("**")[2])
        given = EXERCISE.split(answer.partition("\n")[2])[1:]
        assert len(asked) == len(given) > 0, step[:40]
        assert all(">>> " in one for one in given), answer[:40]


def test_a_change_in_one_language_is_seen() -> None:
    text = read("docs/zh/from-formula-to-code.md")
    for parts, word in ((tables, "41.2"), (code, "need_weights"), (formulas, "S \\cdot")):
        assert parts(text.replace(word, "7")) != parts(text)
