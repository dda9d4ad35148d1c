"""The page that computes: every control does what it says, and the numbers are attn_core's."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attn_core.explorer import computing_page
from examples import explorer as program
from tests.explorer.conftest import settle

SCORES = "dot", "scaled_dot", "cosine", "general", "additive", "gat", "gatv2"
NORMALIZERS = "softmax", "sparsemax", "entmax15", "entmax", "hard"
SUPPORTS = "all", "causal", "window", "edges"
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
READ = """() => ({
    program: document.querySelector("#program")?.textContent,
    cells: [...document.querySelectorAll("#table tbody tr")].map((row) =>
        [...row.querySelectorAll("td")].map((cell) => cell.textContent)),
})"""


def number(text: str) -> float:
    return 0.0 if text == "–" else float(text.replace("−", "-"))


def table(page: Any) -> list[list[str]]:
    settle(page)
    return page.evaluate(READ)["cells"]


def numbers(page: Any) -> torch.Tensor:
    return torch.tensor(
        [[number(cell) for cell in row] for row in table(page)], dtype=torch.float64
    )


def opened(show: Callable[..., Any], fragment: str = "", **options: Any) -> Any:
    """A page with all its numbers written out, in full."""
    page = show(fragment=fragment, **options)
    for name in ("table", "python"):
        page.click(f"#{name} > summary")
    page.select_option("#digits", "all")
    settle(page)
    return page


def in_python(code: str) -> torch.Tensor:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names["weights"]


@pytest.mark.parametrize("score", SCORES)
def test_its_program_gives_the_weights_that_it_shows(show: Callable[..., Any], score: str) -> None:
    page = opened(show, f"score={score}")
    # Each normaliser and each support, and no other pairs of them: a drawn page takes its time
    turns = [*zip(NORMALIZERS, (*SUPPORTS, "edges"), strict=True)]
    for normalizer, support in turns:
        page.select_option("#normalizer", normalizer)
        page.select_option("#support", support)
        shown = numbers(page)
        expected = in_python(page.evaluate(READ)["program"])[0]
        torch.testing.assert_close(shown, expected, **CLOSE)


@pytest.mark.parametrize("example", ["sentence", "decoder", "graph", "dictionary"])
def test_so_it_does_with_heads_temperature_and_masks(
    show: Callable[..., Any], example: str
) -> None:
    page = opened(
        show, f"example={example}&temperature=0.5&headCount=3&normalizer=entmax&alpha=1.3"
    )
    page.click("#mask-1")
    settle(page)
    expected = in_python(page.evaluate(READ)["program"])
    assert len(expected) == 3 and not expected[:, :, 1].any()
    torch.testing.assert_close(numbers(page), expected.mean(0), **CLOSE)
    for head in range(3):
        page.select_option("#head", str(head))
        torch.testing.assert_close(numbers(page), expected[head], **CLOSE)
    assert not torch.equal(expected[0], expected[1])


def test_the_arithmetic_ends_in_the_weight(show: Callable[..., Any]) -> None:
    page = opened(show, "temperature=1.3")
    page.click("#chip-5")
    turns = [(score, "softmax") for score in SCORES] + [("dot", n) for n in NORMALIZERS]
    for score, normalizer in turns:
        page.select_option("#score", score)
        page.select_option("#normalizer", normalizer)
        weight = numbers(page)[8, 5].item()
        row = [number(x) for x in page.locator("#arithmetic tr.chosen td").all_inner_texts()]
        assert row[-1] == weight
        left, right = ".columns > div:first-child .formula b", ".columns > .block:last-child b"
        if normalizer != "hard":
            assert number(page.locator(right).last.inner_text()) == weight
        *_, cooled = page.locator(left).all_inner_texts()
        assert number(cooled) == row[1]
        assert number(cooled) * 1.3 == pytest.approx(row[0], rel=1e-14)


def rows_of(page: Any, table: str) -> list[list[float]]:
    """The numbers of a table of the arithmetic, its sums last."""
    code = """(table) => [...document.querySelectorAll(`${table} tbody tr, ${table} tfoot tr`)]
        .map((row) => [...row.querySelectorAll("td")].map((cell) => cell.textContent))"""
    return [[number(x) for x in row if x] for row in page.evaluate(code, table)]


def test_softmax_is_written_term_by_term(show: Callable[..., Any]) -> None:
    page = opened(show, "score=dot")
    *terms, (product,) = rows_of(page, ".columns > div:first-child .block:nth-child(2) .sums")
    assert len(terms) == 2 and all(q * k == both for q, k, both in terms)
    *row, (total, whole) = rows_of(page, ".columns > .block:last-child .sums")
    assert product == sum(both for _, _, both in terms) == row[1][0]
    largest = max(score for score, *_ in row)
    assert total == pytest.approx(sum(exponential for _, _, exponential, _ in row), rel=1e-15)
    assert whole == pytest.approx(1, rel=1e-15)
    for score, shifted, exponential, weight in row:
        assert shifted == score - largest
        assert exponential == pytest.approx(math.exp(shifted), rel=1e-14)
        assert weight == exponential / total


def test_the_threshold_of_sparsemax_is_written_term_by_term(show: Callable[..., Any]) -> None:
    page = opened(show, "score=dot&normalizer=sparsemax&temperature=3")
    *row, _ = rows_of(page, ".columns > .block:last-child .scroll:nth-of-type(1) .sums")
    weights = [weight for *_, weight in row]
    text = page.locator(".columns > .block:last-child .formula >> nth=-2").inner_text()
    threshold = number(text.split(" = ")[-1])
    for *_, shifted, weight in row:
        assert weight == max(shifted - threshold, 0)
    inside = sorted((shifted for *_, shifted, weight in row if weight > 0), reverse=True)
    assert 1 < len(inside) < len(row)
    assert threshold == pytest.approx((sum(inside) - 1) / len(inside), rel=1e-14)
    assert sum(weights) == pytest.approx(1, rel=1e-14)


def test_each_control_changes_the_weights(show: Callable[..., Any]) -> None:
    page = opened(show)
    before = numbers(page)

    def changed(reset: bool = True) -> torch.Tensor:
        nonlocal before
        now = numbers(page)
        assert not torch.equal(now, before)
        if reset:
            page.click("#restart")
            page.click("#table > summary")
            page.click("#python > summary")
            before = numbers(page)
        else:
            before = now
        return now

    page.select_option("#score", "cosine")
    changed()
    page.select_option("#normalizer", "sparsemax")
    assert (changed() == 0).any()
    page.focus("#temperature")
    page.keyboard.press("End")
    assert changed().max() < 0.3
    page.select_option("#support", "window")
    narrow = changed(False)
    page.focus("#radius")
    page.keyboard.press("Home")
    assert torch.equal(changed(False).diagonal(), torch.ones(12, dtype=torch.float64))
    assert not torch.equal(narrow, before)
    page.select_option("#normalizer", "entmax")
    page.select_option("#support", "all")
    changed(False)
    page.focus("#alpha")
    page.keyboard.press("End")
    changed()
    page.select_option("#heads", "2")
    changed()
    page.click("#mask-0")
    assert not changed()[:, 0].any()
    page.click("#parameters > summary")
    page.fill("#parameters input >> nth=0", "-3")
    changed()
    page.click("#mask-pair")
    assert changed()[8, 1] == 0
    page.fill("#words", "one two three")
    page.keyboard.press("Enter")
    page.click("#table > summary")
    assert numbers(page).shape == (3, 3)


def test_options_show_where_they_have_a_meaning(show: Callable[..., Any]) -> None:
    page = show()
    for name, select, value in (("alpha", "normalizer", "entmax"), ("radius", "support", "window")):
        assert page.locator(f"#{name}").count() == 0
        page.select_option(f"#{select}", value)
        settle(page)
        assert page.locator(f"#{name}").is_visible()
    assert page.locator("#head").count() == 0
    page = show(fragment="example=decoder")
    assert page.locator("#support option[value=edges]").is_disabled()


def test_colours_and_digits_change_what_is_shown(show: Callable[..., Any]) -> None:
    page = opened(show)
    assert page.locator("#matrix .scale").inner_text().split()[-1] == "0.723"
    page.select_option("#scale", "one")
    page.select_option("#digits", "2")
    assert {len(cell) for row in table(page) for cell in row} == {4}
    assert page.locator("#matrix .scale").inner_text().split()[-1] == "1"


def test_a_dragged_point_changes_the_weights_while_it_moves(show: Callable[..., Any]) -> None:
    page = opened(show)
    before = numbers(page)
    page.locator("#point-q4").scroll_into_view_if_needed()
    box = page.locator("#point-q4 .grip").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    seen = [before]
    for step in (20, 60):
        page.mouse.move(x + step, y + step)
        seen.append(numbers(page))
    page.mouse.up()
    page.mouse.move(x, y)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert torch.equal(numbers(page), seen[2])
    torch.testing.assert_close(in_python(page.evaluate(READ)["program"])[0], seen[2], **CLOSE)


def test_a_decoder_is_followed_step_by_step(show: Callable[..., Any]) -> None:
    page = show(fragment="example=decoder")
    text = "l’ accord sur la zone économique européenne a été signé en août 1992"
    words = text.split()

    def at(step: int) -> None:
        settle(page)
        assert page.locator("#written").inner_text().split() == words[: step + 1]
        assert page.locator("#written mark").inner_text() == words[step]
        assert page.locator(".where").inner_text() == f"Step {step + 1} of 13"

    at(0)
    page.click("#next")
    page.click("#next")
    at(2)
    page.click("#previous")
    at(1)
    page.locator("#step").fill("11")
    at(11)
    assert page.locator("#play").get_attribute("aria-label") == "Play"
    page.click("#play")
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    page.wait_for_selector("#play[aria-label=Play]")
    at(12)


def test_the_decoder_reads_what_it_translates(show: Callable[..., Any]) -> None:
    page = opened(show, "example=decoder")
    aligned = [0, 1, 2, 3, 6, 5, 4, 7, 8, 8, 9, 10, 11]
    assert numbers(page).argmax(1).tolist() == aligned


def test_gat_ranks_the_keys_alike_for_every_query_and_gatv2_does_not(
    show: Callable[..., Any],
) -> None:
    page = show(fragment="example=dictionary")

    def found() -> dict[str, list[str]]:
        settle(page)
        return {
            score: [page.locator(f"#{fact}-{score}").inner_text() for fact in ("rankings", "found")]
            for score in ("gat", "gatv2")
        }

    first = found()
    assert first == {"gat": ["1", "1 of 8"], "gatv2": ["8", "8 of 8"]}
    for direction in ("-130", "-77", "5", "101"):
        page.locator("#direction").fill(direction)
        assert found()["gat"] == ["1", "1 of 8"]
    page.select_option("#score", "gat")
    page.click("#table > summary")
    page.select_option("#digits", "all")
    weights = numbers(page)
    assert (weights.argsort(1) == weights[0].argsort()).all()
    page.select_option("#score", "gatv2")
    assert numbers(page).argmax(1).tolist() == list(range(8))


def test_the_address_keeps_the_settings(show: Callable[..., Any]) -> None:
    page = opened(show)
    page.select_option("#score", "gatv2")
    page.select_option("#support", "window")
    page.focus("#radius")
    page.keyboard.press("ArrowRight")
    weights = numbers(page)
    address = page.evaluate("location.hash.slice(1)")
    assert "score=gatv2" in address and "radius=3" in address
    assert torch.equal(numbers(opened(show, address)), weights)


@pytest.mark.parametrize(
    "fragment",
    [
        "example=none&score=none",
        "example=constructor&score=toString",
        "radius=-1&alpha=x&headCount=9&temperature=0",
        "lang=xx",
        "example=decoder&support=edges",
    ],
)
def test_an_address_that_makes_no_sense_is_ignored(show: Callable[..., Any], fragment: str) -> None:
    page = show(fragment=fragment)
    assert page.locator("#chip-0").is_visible()
    assert page.locator("h1").inner_text() == "Attention explorer"


def test_the_program_writes_the_page(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "page.html"
    assert program.main(["--example", "graph", "--language", "zh", "--out", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == computing_page("graph", "zh")
    assert str(path) in capsys.readouterr().out


def test_another_example_or_language_is_refused() -> None:
    with pytest.raises(ValueError, match="example is 'none'; expected one of sentence, decoder"):
        computing_page("none")
    with pytest.raises(ValueError, match="language is 'fr'; expected 'en', 'zh' or None"):
        computing_page(language="fr")
