"""What holds of every page: keyboard, screen readers, phones, dark, Chinese, hostile names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gat.plot
import sequence_attn.plot
from attn_core.explorer import computing_page, write_page
from attn_core.explorer import page as writer
from gat import GAT, LayerAttention, attention_weights
from tests.explorer.conftest import settle
from tests.explorer.test_computing import numbers, opened, table

EVIL = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    '"><svg onload=alert(1)>',
    "{{data}} &lt; \\u003c ${1}",
    "half \ud800 and \u2028 line",
]
WORDS = ["we", "like", "green", "tea"]


def given(folder: Path) -> Path:
    weights = torch.rand(2, 5, 4).softmax(-1)
    target = ["wir", "mögen", "绿茶", "sehr", "gern"]
    return sequence_attn.plot.explorer(weights, WORDS, target, path=folder / "a.html")


def graph(folder: Path, **options: Any) -> Path:
    ring = torch.arange(7)
    edge_index = torch.stack([torch.cat([ring, ring]), torch.cat([ring, (ring + 1) % 7])])
    return gat.plot.explorer((edge_index, torch.rand(14, 3)), path=folder / "g.html", **options)


# --- Linked pictures, keyboard, screen readers ---------------------------------------------------


def marked(page: Any) -> dict[str, Any]:
    """What each view marks."""
    settle(page)
    return page.evaluate(
        """() => {
            const text = (s) => document.querySelector(s)?.textContent ?? null;
            return {
                matrix: [text("#matrix text.q.on"), text("#matrix text.k.on")],
                arcs: [text("#arcs text.query"), text("#arcs text.key")],
                network: [text("#network .node.query"), text("#network .node.key")],
                chip: text("#read .key span"),
                pairs: document.querySelectorAll("#arcs .pair, #network .pair").length,
            };
        }"""
    )


def test_one_pair_is_marked_in_every_picture(show: Callable[..., Any], tmp_path: Path) -> None:
    page = show(given(tmp_path))
    page.focus(".stage.matrix")
    for keys in (["Home"], ["ArrowDown", "ArrowRight", "ArrowRight"]):
        for key in keys:
            page.keyboard.press(key)
        seen = marked(page)
        pair = seen["matrix"]
        assert seen["arcs"] == seen["network"] == pair
        assert seen["chip"] == pair[1] and seen["pairs"] == 2
    assert pair == ["mögen", "green"]
    # The pointer marks for a while, a click for good
    box = page.locator(".stage.matrix canvas").bounding_box()
    corner = box["x"] + box["width"] - 10, box["y"] + box["height"] - 10
    page.mouse.move(*corner)
    assert marked(page)["arcs"] == ["gern", "tea"]
    page.mouse.move(5, 5)
    assert marked(page)["arcs"] == pair
    page.mouse.click(*corner)
    page.mouse.move(5, 5)
    assert marked(page)["network"] == ["gern", "tea"]
    page.locator("#arcs text", has_text="like").click()
    page.mouse.move(5, 5)
    assert marked(page)["matrix"] == ["gern", "like"]
    page.locator("#network .node", has_text="mögen").click()
    page.mouse.move(5, 5)
    assert marked(page)["matrix"][0] == marked(page)["arcs"][0] == "mögen"
    page.locator("#read button", has_text="we").click()
    assert marked(page)["matrix"] == ["mögen", "we"]


@pytest.mark.parametrize(
    "fragment",
    ["example=sentence&normalizer=entmax&support=window&headCount=2", "example=dictionary"],
)
def test_the_keyboard_alone_reaches_everything(show: Callable[..., Any], fragment: str) -> None:
    page = opened(show, fragment)
    page.click("#parameters > summary")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    wanted = page.evaluate(
        """() => {
            const inputs = "input:not([type=radio]), input:checked";
            const reached = `button, select, summary, [tabindex='0'], a[href], ${inputs}`;
            const all = [...document.querySelectorAll(reached)].filter((e) => e.checkVisibility());
            all.forEach((element, n) => (element.dataset.tab = n));
            return all.length;
        }"""
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.tab ?? ''"))
    assert wanted > 40
    assert {str(n) for n in range(wanted)} <= reached


def test_the_keyboard_alone_operates_everything(show: Callable[..., Any]) -> None:
    page = opened(show)
    live = page.locator("#live")
    page.keyboard.press("Home")
    for stage in ("matrix", "arcs", "network"):
        page.focus(f".stage.{stage}")
        before = live.inner_text()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight" if stage == "matrix" else "End")
        assert live.inner_text() != before
        assert live.inner_text().startswith("query ")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "arithmetic"
    page.focus("#point-q2")
    before = numbers(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    assert not torch.equal(numbers(page), before)
    told = page.locator("#point-q2").get_attribute("aria-label")
    assert told == "did: -0.85, 0.45; arrow keys move it"
    page.focus("#mask-0")
    page.keyboard.press("Space")
    assert not numbers(page)[:, 0].any()
    page.focus("#mask-pair")
    before = numbers(page)
    page.keyboard.press("Enter")
    assert not torch.equal(numbers(page), before)
    assert page.evaluate("document.activeElement.id") == "mask-pair"  # though it was drawn anew
    page.focus("#next")
    page.keyboard.press("Enter")
    settle(page)
    page.focus("#examples-sentence")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator("#written mark").inner_text() == "l’"
    assert page.evaluate("document.activeElement.id") == "examples-decoder"
    page.focus("#language-en")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator("h1").inner_text() == "注意力探索器"


def test_screen_readers_are_told_names_and_weights(
    show: Callable[..., Any], tmp_path: Path
) -> None:
    for page in (show(), show(graph(tmp_path)), show(fragment="example=dictionary&headCount=2")):
        nameless = page.evaluate(
            """() => {
                const named = "button, input, select, section, [role=application], [role=region]";
                const text = (id) => document.getElementById(id)?.textContent;
                return [...document.querySelectorAll(named)].filter((e) =>
                    !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
                    || text(e.getAttribute("aria-labelledby")))).map((e) => e.outerHTML);
            }"""
        )
        assert nameless == []
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))
        assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
    page.focus(".stage.matrix")
    page.keyboard.press("ArrowDown")
    told = page.locator("#live").inner_text()
    page.click("#table > summary")
    rank = 1 + int((numbers(page)[1] > numbers(page)[1, 0]).sum())
    weight = table(page)[1][0]
    assert told == f"query q2, key k1, weight {weight}, rank {rank} of 8"
    assert page.locator("#table th[scope=col]").count() == 9
    assert page.locator("#table th[scope=row]").count() == 8


# --- Appearance ----------------------------------------------------------------------------------


def test_a_phone_needs_no_scrolling_sideways(show: Callable[..., Any], tmp_path: Path) -> None:
    narrow = {"size": (360, 740), "is_mobile": True, "has_touch": True}
    page = show(fragment="lang=zh&score=gatv2&headCount=2", **narrow)
    pages = [page, show(given(tmp_path), **narrow), show(graph(tmp_path), "lang=zh", **narrow)]
    for one in pages:
        for example in writer.EXAMPLES if one is page else [None]:
            if example is not None:
                one.locator(f"#examples-{example}").check()
            one.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
            settle(one)
            assert one.evaluate("document.documentElement.scrollWidth") == 360
            for picture in one.locator(".stage").all():
                assert picture.bounding_box()["width"] <= 340


def test_dark_and_light_follow_the_system_and_the_switch(show: Callable[..., Any]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = show(color_scheme="light"), show(color_scheme="dark")
    assert light.evaluate(paper) == "rgb(250, 250, 247)"
    assert dark.evaluate(paper) == "rgb(18, 21, 26)"
    dark.locator("#theme-light").check()
    assert dark.evaluate(paper) == light.evaluate(paper)
    light.emulate_media(color_scheme="dark")
    settle(light)
    assert light.evaluate(paper) == "rgb(18, 21, 26)"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_paper(show: Callable[..., Any], theme: str) -> None:
    page = show(color_scheme=theme)
    colours = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            const names = ["paper", "card", "ink", "soft", "edge", "accent", "accent-soft", "mark"];
            const value = (name) => style.getPropertyValue(`--${name}`).trim();
            return Object.fromEntries(names.map((name) => [name, value(name)]));
        }"""
    )

    def lightness(name: str) -> float:
        channels = [int(colours[name][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((lightness(one), lightness(other)))
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "soft", "accent", "mark"):
        assert contrast(ink, "paper") >= 4.5 and contrast(ink, "card") >= 4.5, ink
    assert contrast("accent", "accent-soft") >= 4.5
    assert contrast("edge", "card") >= 3 and contrast("edge", "paper") >= 3


def test_nothing_moves_for_who_asked_for_stillness(show: Callable[..., Any]) -> None:
    duration = (
        "parseFloat(getComputedStyle(document.querySelector('#arcs path')).transitionDuration)"
    )
    assert show(reduced_motion="reduce").evaluate(duration) == 0
    assert show(reduced_motion="no-preference").evaluate(duration) > 0


def test_the_language_is_that_of_the_browser_or_the_chosen_one(show: Callable[..., Any]) -> None:
    page = show(locale="zh-CN")
    assert page.locator("h1").inner_text() == page.title() == "注意力探索器"
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    texts = page.locator("main").inner_text() + page.locator("#settings").inner_text()
    for term in ("注意力", "查询", "键", "评分函数", "掩蔽", "缩放点积", "分数"):
        assert term in texts
    page.locator("#language-en").check()
    assert page.locator("h1").inner_text() == "Attention explorer"
    assert "注意力" not in page.locator("main").inner_text()


# --- Real weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_are_shown_to_the_last_digit(
    show: Callable[..., Any], tmp_path: Path, dtype: torch.dtype
) -> None:
    weights = torch.rand(2, 4, 6, dtype=torch.float64).softmax(-1).to(dtype)
    page = show(sequence_attn.plot.explorer(weights, path=tmp_path / "a.html"))
    page.click("#table > summary")
    page.select_option("#digits", "all")
    torch.testing.assert_close(numbers(page), weights.double().mean(0), rtol=1e-15, atol=0)
    for head in range(2):
        page.select_option("#head", str(head))
        assert torch.equal(numbers(page), weights[head].double())


def test_a_model_is_shown_layer_by_layer(show: Callable[..., Any], tmp_path: Path) -> None:
    model = GAT(3, 4, num_layers=2, heads=2).eval()
    edge_index = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 4, 0]])
    layers = attention_weights(model, torch.randn(5, 3), edge_index)
    page = show(gat.plot.explorer(layers, path=tmp_path / "g.html", title="My model"))
    assert page.title() == page.locator("h1").inner_text() == "My model"
    page.click("#table > summary")
    page.select_option("#digits", "all")
    for number, layer in enumerate(layers):
        page.select_option("#layer", str(number))
        expected = layer.to_dense().double().mean(0).detach()
        torch.testing.assert_close(numbers(page), expected, rtol=1e-15, atol=0)
        assert sum(cell != "–" for row in table(page) for cell in row) == 10


def test_parallel_edges_add_up_and_a_neighbourhood_is_cut_out(
    show: Callable[..., Any], tmp_path: Path
) -> None:
    edge_index = torch.tensor([[0, 0, 1, 2, 3, 4], [1, 1, 1, 1, 2, 3]])
    weights = torch.tensor([0.25, 0.125, 0.125, 0.5, 1.0, 1.0])
    path = gat.plot.explorer(
        (edge_index, weights), path=tmp_path / "g.html", node=1, labels=[0, 1, 1, 0, -1],
        class_names=["left", "right"], node_names="abcde", positions=torch.rand(5, 2),
    )  # fmt: skip
    page = show(path)
    page.click("#table > summary")
    assert page.locator("#table th[scope=row]").all_inner_texts() == ["b", "c", "a"]
    assert numbers(page).tolist() == [[0.125, 0.5, 0.375], [0, 0, 0], [0, 0, 0]]
    assert page.locator(".legend").inner_text().split() == ["left", "right"]


def test_hostile_names_are_text(show: Callable[..., Any], tmp_path: Path) -> None:
    weights = torch.rand(len(EVIL), len(EVIL)).softmax(-1)
    one = sequence_attn.plot.explorer(weights, EVIL, path=tmp_path / "a.html", title=EVIL[0])
    two = gat.plot.explorer(
        (torch.tensor([[0, 1], [1, 0]]), torch.ones(2)), path=tmp_path / "g.html", title=EVIL[1],
        node_names=EVIL[:2], class_names=EVIL[2:4], labels=[0, 1],
    )  # fmt: skip
    for path, title, names in ((one, EVIL[0], EVIL), (two, EVIL[1], EVIL[:2])):
        page = show(path)
        page.click("#table > summary")
        settle(page)
        assert page.evaluate("[window.hacked === undefined, document.scripts.length]") == [True, 2]
        assert page.title() == title
        shown = page.evaluate(
            "[...document.querySelectorAll('#table th[scope=row]')].map((e) => e.textContent)"
        )
        assert [name.replace("\ud800", "\ufffd") for name in names] == [
            name.replace("\ud800", "\ufffd") for name in shown
        ]
        assert page.locator("img").count() == 0


# --- The file ------------------------------------------------------------------------------------


def test_a_page_is_small_and_lets_nothing_be_loaded(tmp_path: Path) -> None:
    for text in (computing_page(), given(tmp_path).read_text(encoding="utf-8")):
        assert len(text.encode()) < 150_000
        assert "default-src 'none'" in text and "'unsafe-" not in text
        assert "http" not in text.replace("http-equiv", "").replace(
            "http://www.w3.org/2000/svg", ""
        )
    for module in writer.ASSETS.glob("*.js"):
        source = module.read_text(encoding="utf-8")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in source, module.name
        assert module.stem in writer.MODULES


def test_what_the_policy_does_not_name_does_not_run(browser: Any, tmp_path: Path) -> None:
    text = computing_page().replace("</body>", "<script>window.hacked = 1</script></body>")
    page = browser.new_page()
    page.goto(write_page(tmp_path / "page.html", text).as_uri())
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("h1").is_visible()
    page.close()


def test_a_large_graph_and_a_large_page_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    with pytest.raises(ValueError, match="a graph of 301 nodes is too large to show whole"):
        gat.plot.explorer((torch.tensor([[300], [0]]), torch.ones(1)), path=path)
    with pytest.raises(ValueError, match=r"bytes, more than 500,000: pass fewer heads"):
        sequence_attn.plot.explorer(torch.rand(8, 120, 120), path=path)
    sequence_attn.plot.explorer(torch.rand(1, 260, 260), path=path)
    assert path.stat().st_size < writer.LARGEST


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, 1]}, r"edge_index must lie in 0..1; got 2"),
        ({"labels": [0] * 4, "node_names": "abc"}, "node_names must have one entry per node, 4"),
        ({"positions": [[0, 0], [1, 1], [np.nan, 1]]}, r"positions must be finite and of shape"),
        ({"node": 3}, r"node must lie in 0..2; got 3"),
        ({"node": 0, "hops": 0}, "hops and max_neighbours must be at least 1; got 0 and 60"),
        ({"language": "fr"}, "language is 'fr'"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    pair = torch.tensor([[0, 1], [1, 2]]), torch.ones(2)
    with pytest.raises((ValueError, IndexError), match=message):
        gat.plot.explorer(pair, path=tmp_path / "g.html", **{"node_names": None, **options})
    assert not list(tmp_path.iterdir())


def test_layers_over_other_nodes_and_negative_weights_are_refused(tmp_path: Path) -> None:
    edge_index, weights = torch.tensor([[0], [1]]), torch.ones(1, 1)
    layer = LayerAttention("conv", edge_index, weights, (4, 2))
    with pytest.raises(
        ValueError, match="attention of 'conv' is from 4 nodes to 2; expected one set"
    ):
        gat.plot.explorer([layer], path=tmp_path / "g.html")
    with pytest.raises(ValueError, match="attention is empty"):
        gat.plot.explorer([], path=tmp_path / "g.html")
    with pytest.raises(ValueError, match="weights must not be negative in an explorer; the least"):
        sequence_attn.plot.explorer(-torch.ones(2, 2), path=tmp_path / "a.html")


def test_a_failed_write_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_page(tmp_path / "page.html", "old")

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(writer.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_page(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
