"""The formulas in JavaScript against attn_core and torch, in float64."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

import pytest
import torch

from attn_core import (
    Additive,
    Cosine,
    Dense,
    Dot,
    Entmax,
    General,
    Hard,
    ScaledDot,
    Separable,
    Softmax,
    Sparsemax,
    Window,
)
from attn_core.explorer.page import ASSETS

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
D = 5


def call(page: Any, code: str, argument: Any = None, module: str = "formulas") -> Any:
    """The value of a JavaScript function of a module, here `m`, and an argument."""
    source = "data:text/javascript," + quote((ASSETS / f"{module}.js").read_text(encoding="utf-8"))
    return page.evaluate(
        "async ([source, code, x]) => eval(code)(await import(source), x)", [source, code, argument]
    )


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def scores() -> dict[str, tuple[Any, dict[str, torch.Tensor], dict[str, float]]]:
    """Of each score: the same in attn_core, for one head, and its parameters in JavaScript."""
    W, v, a, b = drawn(D, D), drawn(D), drawn(D), drawn(D)
    return {
        "dot": (Dot(), {}, {}),
        "scaled_dot": (ScaledDot(), {}, {}),
        "cosine": (Cosine(), {}, {}),
        "general": (General(W[None]), {"W": W}, {}),
        "additive": (Additive(v[None]), {"v": v}, {}),
        "gat": (Separable(a[None], b[None], negative_slope=0.3), {"a": a, "b": b}, {"slope": 0.3}),
        "gatv2": (Additive(v[None], "leaky_relu", 0.3), {"v": v}, {"slope": 0.3}),
    }


@pytest.mark.parametrize("name", scores())
def test_each_score_is_that_of_attn_core(blank: Any, name: str) -> None:
    score, tensors, numbers = scores()[name]
    q, k = drawn(40, D), drawn(40, D)
    expected = score.pair(q[:, None], k[:, None])[:, 0]
    given = {key: t.tolist() for key, t in tensors.items()} | numbers
    got = call(
        blank,
        "(m, [name, q, k, own]) => q.map((x, n) => m.SCORES[name](x, k[n], own).value)",
        [name, q.tolist(), k.tolist(), given],
    )
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), expected, **CLOSE)


def rows() -> list[list[float]]:
    """Scores of rows: common, tied, far apart, with absent pairs, alone, empty."""
    common = [(scale * drawn(9)).tolist() for scale in (0.1, 1, 5, 40) for _ in range(6)]
    absent = [row[:4] + [-math.inf] * 3 + row[7:] for row in common]
    odd = [
        [1.0] * 5,
        [2.0, 2.0, 1.0],
        [700.0, -700.0, 699.5],
        [3.0],
        [-math.inf] * 3,
        [0.5, -math.inf],
    ]
    return common + absent + odd


ALPHAS = 0.5, 1.0, 1.0001, 1.2, 1.5, 1.9, 2.0, 3.0
NORMALIZERS = [
    ("softmax", 0.0, Softmax()),
    ("sparsemax", 0.0, Sparsemax()),
    ("entmax15", 0.0, Entmax(1.5)),
    ("hard", 0.0, Hard()),
    *(("entmax", alpha, Entmax(alpha)) for alpha in ALPHAS),
]


@pytest.mark.parametrize(("name", "alpha", "normalizer"), NORMALIZERS)
def test_each_normalizer_is_that_of_attn_core(
    blank: Any, name: str, alpha: float, normalizer: Any
) -> None:
    given = rows()
    got = call(
        blank,
        "(m, [name, alpha, rows]) => rows.map((row) => m.NORMALIZERS[name](row, {alpha}).weights)",
        [name, alpha, given],
    )
    for row, weights in zip(given, got, strict=True):
        expected = normalizer.dense(torch.tensor(row, dtype=torch.float64))
        torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), expected, **CLOSE)


def test_softmax_is_that_of_torch(blank: Any) -> None:
    given = [row for row in rows() if max(row) > -math.inf]
    got = call(blank, "(m, rows) => rows.map((row) => m.softmax(row).weights)", given)
    for row, weights in zip(given, got, strict=True):
        expected = torch.tensor(row, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), expected, **CLOSE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_score_stays_visible_in_every_normalizer(blank: Any, bad: float) -> None:
    code = "(m, row) => Object.values(m.NORMALIZERS).map((f) => f(row, {alpha: 1.3}).weights)"
    for weights in call(blank, code, [1.0, bad, 0.0, -math.inf]):
        assert all(map(math.isnan, weights[:3])) and weights[3] == 0


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (4, 7)])
def test_supports_are_those_of_attn_core(blank: Any, queries: int, keys: int) -> None:
    code = """(m, [name, queries, keys, radius]) => Array.from({length: queries}, (_, i) =>
        Array.from({length: keys}, (_, j) => m.SUPPORTS[name](i, j, {queries, keys, radius})))"""
    causal = Dense(causal=True).allowed((), heads=1, queries=queries, keys=keys)
    got = call(blank, code, ["causal", queries, keys, 0])
    assert torch.equal(torch.tensor(got), causal.expand(1, queries, keys)[0])
    positions, exists = Window(2).positions(queries, keys)
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        seen[i, positions[i][exists[i]]] = True
    assert torch.equal(torch.tensor(call(blank, code, ["window", queries, keys, 2])), seen)


def test_colours_are_ordered_by_lightness_and_their_ink_is_read(blank: Any) -> None:
    code = """(m, theme) => {
        document.documentElement.dataset.theme = theme;
        return Array.from({length: 201}, (_, n) => {
            const l = m.luminance(m.rgb(n / 200));
            const ink = m.inkOn(n / 200) === "#000" ? 0 : 1;
            return [l, (Math.max(l, ink) + 0.05) / (Math.min(l, ink) + 0.05)];
        });
    }"""
    for theme in ("light", "dark"):
        lightness, contrast = zip(*call(blank, code, theme, "colours"), strict=True)
        assert list(lightness) == sorted(lightness, reverse=theme == "light")
        assert min(contrast) >= 4.5


def test_every_text_is_there_in_both_languages(blank: Any) -> None:
    for name, texts in call(blank, "(m) => m.TEXTS", None, "i18n").items():
        english, chinese = texts
        assert english.strip() and chinese.strip(), name
        words = [sorted(w.split("}")[0] for w in text.split("{")[1:]) for text in texts]
        assert words[0] == words[1], name
