"""What the pictures show, read back from the artists that matplotlib was given."""

import builtins
import runpy
import sys
import warnings
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontEntry, fontManager

matplotlib.use("Agg")

from matplotlib import pyplot

import sequence_attn.plot
from sequence_attn import SequenceAttention
from sequence_attn.plot import alignment_flow, heatmap

WEIGHTS = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.4, 0.6]])
SOURCE, TARGET = ["the", "red", "house"], ["maison", "rouge"]
BLUE, ORANGE, RED = "#3f90da", "#ffa90e", "#bd1f01"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def only_matplotlibs_fonts(monkeypatch):
    """No font is installed but those that come with matplotlib, which have no Chinese."""
    own = [f for f in fontManager.ttflist if f.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)


def install_font(folder, name, characters):
    """Adds a font in which each of the characters is a black square, two ems wide."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (2000, 1000), (2000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *(f"uni{ord(c):04X}" for c in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(c): f"uni{ord(c):04X}" for c in characters})
    font.setupGlyf(dict.fromkeys(glyphs, square))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (2000, 0)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path = folder / f"{name}.ttf"
    font.save(path)
    fontManager.addfont(str(path))


def texts(labels):
    return [label.get_text() for label in labels]


def cells(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


def bands(ax):
    """Each band: the heights of its ends, its width in points, its colour and its opacity."""
    (collection,) = ax.collections
    return [
        (path.vertices[0, 1], path.vertices[-1, 1], width, to_hex(colour[:3]), colour[3])
        for path, width, colour in zip(
            collection.get_paths(),
            collection.get_linewidths(),
            collection.get_edgecolors(),
            strict=True,
        )
    ]


def pairs(ax, queries, keys):
    """The (query, key) of each band."""
    return {(int(b * queries), int(a * keys)) for a, b, *_ in bands(ax)}


def overlapping(ax, labels):
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


class TestHeatmap:
    @pytest.mark.parametrize(
        "weights",
        [
            WEIGHTS.double(),
            WEIGHTS.clone().requires_grad_(),
            WEIGHTS.half(),
            WEIGHTS.bfloat16(),
            WEIGHTS.numpy(),
            WEIGHTS.tolist(),
            WEIGHTS.gt(0.3),
            pytest.param(WEIGHTS.half(), marks=pytest.mark.gpu, id="gpu"),
        ],
    )
    def test_cells_are_the_weights(self, weights, request):
        if request.node.get_closest_marker("gpu"):
            weights = weights.cuda()
        expected = torch.as_tensor(weights).detach().cpu().double()
        assert np.array_equal(cells(heatmap(weights)), expected)

    def test_source_runs_to_the_right_and_target_downwards(self):
        ax = heatmap(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), SOURCE, TARGET)
        assert texts(ax.get_xticklabels()) == SOURCE and list(ax.get_xticks()) == [0, 1, 2]
        assert texts(ax.get_yticklabels()) == TARGET and list(ax.get_yticks()) == [0, 1]
        assert "source" in ax.get_xlabel() and "target" in ax.get_ylabel()
        ax.figure.canvas.draw()
        picture = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]
        shades = {}
        for x, y in np.ndindex(3, 2):
            right, up = ax.transData.transform((x, y)).astype(int)
            shades[x, y] = picture[len(picture) - up, right].sum()
        assert min(shades, key=shades.get) == (2, 0)  # where "house" meets "maison"
        up = {y: ax.transData.transform((0, y))[1] for y in (0, 1)}
        assert up[0] > up[1]

    def test_orientation_does_not_depend_on_the_readers_settings(self):
        settings = {
            "image.origin": "lower",
            "image.aspect": "auto",
            "image.interpolation": "bilinear",
            "axes.grid": True,
        }
        with matplotlib.rc_context(settings):
            ax = heatmap(WEIGHTS)
        assert ax.yaxis_inverted() and ax.get_aspect() == 1
        assert ax.images[0].get_interpolation() == "auto"
        assert not any(line.get_visible() for line in ax.get_xgridlines())

    def test_positions_by_default(self):
        ax = heatmap(WEIGHTS)
        assert texts(ax.get_xticklabels()) == ["0", "1", "2"]
        assert texts(ax.get_yticklabels()) == ["0", "1"]

    def test_heads_share_one_scale_and_one_colour_bar(self):
        weights = torch.rand(8, 4, 5) / torch.arange(1, 9)[:, None, None]
        axes = heatmap(weights)
        assert axes.shape == (8,)
        assert [ax.get_title() for ax in axes] == [f"head {h}" for h in range(8)]
        for ax, head in zip(axes, weights, strict=True):
            assert np.array_equal(cells(ax), head.double())
            assert ax.images[0].get_clim() == (0.0, weights.max())
        bar = axes[0].images[0].colorbar
        assert axes[0].figure.axes == [*axes, bar.ax]
        assert bar.ax.get_ylabel() == "attention weight"
        axes[0].figure.canvas.draw()
        boxes, long = [ax.get_position() for ax in axes], bar.ax.get_position()
        assert long.x0 > max(box.x1 for box in boxes)  # beside all of them, and as high
        assert long.height > 0.9 * (boxes[0].y1 - boxes[-1].y0)

    def test_shape_decides_what_comes_back(self):
        assert heatmap(WEIGHTS[None]).shape == (1,)
        assert heatmap(WEIGHTS).get_title() == ""

    def test_tokens_stand_at_the_outer_panels_alone(self):
        axes = heatmap(torch.rand(7, 6, 6), "abcdef", "uvwxyz")
        columns = {round(ax.get_position().x0, 3) for ax in axes}
        assert len(columns) == 4  # the place of an eighth head is empty
        assert len(axes[0].figure.axes) == 7 + 1  # with the colour bar

        def shown(labels):
            return bool(labels) and all(label.get_visible() for label in labels)

        assert [shown(ax.get_yticklabels()) for ax in axes] == [h in (0, 4) for h in range(7)]
        assert [shown(ax.get_xticklabels()) for ax in axes] == [h >= 3 for h in range(7)]
        assert all(texts(ax.get_xticklabels()) == list("abcdef") for ax in axes[3:])
        axes[0].figure.canvas.draw()
        upper, lower = (axes[h].get_window_extent() for h in (0, 4))
        assert upper.y0 - lower.y1 < 0.4 * axes[0].figure.dpi  # no room lost to labels between

    def test_titles(self):
        axes = heatmap(WEIGHTS.expand(2, 2, 3), titles=["with\n$\\sqrt{d}$", "without"])
        assert [ax.get_title() for ax in axes] == ["with\n$\\sqrt{d}$", "without"]

    def test_vmax_sets_the_scale_and_the_bar_shows_what_it_cuts_off(self):
        wide, narrow = heatmap(WEIGHTS, vmax=1.0), heatmap(WEIGHTS, vmax=0.5)
        assert wide.images[0].get_clim() == (0, 1)
        assert wide.images[0].colorbar.extend == "neither"
        assert narrow.images[0].get_clim() == (0, 0.5)
        assert narrow.images[0].colorbar.extend == "max"

    def test_negative_numbers_are_red_and_zero_is_white(self):
        image = heatmap(torch.tensor([[-1.0, 0.0, 3.0]])).images[0]
        assert image.get_clim() == (-3, 3)
        negative, zero, positive = (image.cmap(image.norm(v)) for v in (-3.0, 0.0, 3.0))
        assert min(zero[:3]) > 0.95
        assert negative[0] > negative[2] and positive[2] > positive[0]
        assert image.colorbar.ax.get_ylabel() == ""  # scores or biases, not weights

    def test_all_zero(self):
        assert heatmap(torch.zeros(2, 2)).images[0].get_clim() == (0, 1)

    def test_cmap(self):
        assert heatmap(WEIGHTS, cmap="magma").images[0].get_cmap().name == "magma"

    def test_draws_in_the_given_axes(self):
        figure, axes = pyplot.subplots(2, 2)
        assert heatmap(WEIGHTS, ax=axes[0, 1], colorbar=False) is axes[0, 1]
        assert len(figure.axes) == 4 and not axes[0, 0].images
        drawn = heatmap(torch.rand(4, 2, 3), SOURCE, ax=axes)
        assert list(drawn) == list(axes.flat)
        assert all(texts(ax.get_xticklabels()) == SOURCE for ax in axes.flat)

    def test_no_window_is_opened(self, monkeypatch):
        monkeypatch.setattr(pyplot, "show", lambda: pytest.fail("a window was opened"))
        heatmap(WEIGHTS)
        alignment_flow(WEIGHTS)


class TestLongSequences:
    @pytest.mark.parametrize("heads", [(), (8,)])
    def test_every_nth_token_is_labelled(self, heads):
        source, target = [f"s{n}" for n in range(150)], [f"t{n}" for n in range(120)]
        axes = heatmap(torch.rand(*heads, 120, 150), source, target)
        ax = axes if not heads else axes[4]  # a corner panel: both sides bear labels
        sides = (
            (ax.get_xticks(), ax.get_xticklabels(), source),
            (ax.get_yticks(), ax.get_yticklabels(), target),
        )
        for ticks, labels, tokens in sides:
            step = ticks[1]
            assert step > 1 and ticks[0] == 0
            assert np.array_equal(ticks, np.arange(0, len(tokens), step))
            assert texts(labels) == tokens[:: int(step)]
            assert not overlapping(ax, labels)
            assert all(label.get_fontsize() >= 6 for label in labels)

    def test_thinned_positions_are_round_numbers(self):
        ax = heatmap(torch.rand(300, 300))
        ticks = ax.get_xticks()
        assert ticks[1] in (2, 5, 10, 20) and texts(ax.get_xticklabels())[1] == str(int(ticks[1]))
        assert not overlapping(ax, ax.get_xticklabels())

    @pytest.mark.parametrize(("count", "turn"), [(3, 0), (12, 45), (50, 90)])
    def test_every_token_is_labelled_where_there_is_room(self, count, turn):
        tokens = [f"token{n}" for n in range(count)]
        ax = heatmap(torch.rand(count, count), tokens, tokens)
        across, down = ax.get_xticklabels(), ax.get_yticklabels()
        assert texts(across) == texts(down) == tokens
        assert {label.get_rotation() for label in across} == {turn}
        assert not overlapping(ax, down)
        if turn == 45:  # the boxes round slanted lines overlap; the lines must not
            pitch = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
            assert pitch * 2**-0.5 > across[0].get_fontsize() * ax.figure.dpi / 72
        else:
            assert not overlapping(ax, across)

    def test_short_tokens_stay_upright(self):
        labels = heatmap(torch.rand(4, 4), "abcd").get_xticklabels()
        assert {label.get_rotation() for label in labels} == {0}

    def test_thinning_goes_by_the_room_in_the_given_axes(self):
        tokens = [f"token{n}" for n in range(30)]
        steps = []
        for size in (2, 4, 12):
            _, ax = pyplot.subplots(figsize=(size, size))
            heatmap(torch.rand(30, 30), tokens, tokens, ax=ax, colorbar=False)
            assert not overlapping(ax, ax.get_yticklabels())
            steps.append(ax.get_yticks()[1])
        assert steps[0] > steps[1] > steps[2] == 1

    def test_a_few_wide_cells_in_the_given_axes(self):
        _, ax = pyplot.subplots(figsize=(6, 6))
        heatmap(torch.rand(300, 3), SOURCE, ax=ax)
        assert texts(ax.get_xticklabels()) == SOURCE
        assert {label.get_rotation() for label in ax.get_xticklabels()} == {0}

    def test_the_figure_grows_with_the_tokens_up_to_a_limit(self):
        sizes = [
            heatmap(torch.rand(n, n)).figure.get_size_inches().max() for n in (5, 30, 150, 1500)
        ]
        assert sizes[0] < sizes[1] < sizes[2] and sizes[2:] == pytest.approx([13] * 2, abs=2)

    @pytest.mark.parametrize(
        ("shape", "square"), [((5, 7), True), ((1, 12), True), ((1, 300), False)]
    )
    def test_cells_are_square_unless_a_side_became_too_narrow(self, shape, square):
        ax = heatmap(torch.rand(shape))
        assert (ax.get_aspect() == 1) == square
        ax.figure.canvas.draw()
        assert ax.get_window_extent().height / ax.figure.dpi > 0.15  # inches

    def test_a_long_token_is_cut(self):
        token = "https://example.org/" + 100 * "x"
        (label,) = texts(heatmap([[1.0]], [token]).get_xticklabels())
        assert len(label) <= 24 and label.endswith("…") and token.startswith(label[:-1])


class TestCharacters:
    def test_tokens_are_not_parsed_as_mathematics(self):
        tokens = ["$x_1$", "$\\frac{$", "a_b", "\\", "^", "5$", "%", "{"]
        axes = heatmap(torch.rand(8, 8), tokens, tokens), alignment_flow(torch.rand(8, 8), tokens)
        for ax in axes:
            assert texts(ax.get_yticklabels()) == tokens
            ax.figure.canvas.draw()  # mathtext would reject "\frac{"
        # As letters, "$x_1$" is wider than "a_b"; as mathematics it is not.
        first, third = (axes[0].get_yticklabels()[n].get_window_extent().width for n in (0, 2))
        assert first > 1.3 * third

    def test_tokens_are_not_handed_to_tex(self):
        with matplotlib.rc_context({"text.usetex": True}):
            ax = heatmap(torch.rand(2, 2), ["a_b", "$"], ["%", "\\"])
        assert not any(t.get_usetex() for t in (*ax.get_xticklabels(), *ax.get_yticklabels()))

    def test_what_could_not_be_seen_is_written_out(self):
        ax = heatmap(torch.rand(1, 5), [" ", "\n", "a\tb", "", "  "])
        assert texts(ax.get_xticklabels()) == ["␣", "\\n", "a\\tb", "", "␣␣"]

    def test_tokens_of_other_kinds(self):
        ax = heatmap(torch.rand(3, 2), torch.tensor([101, 7]), np.array(["un", "▁deux", "trois"]))
        assert texts(ax.get_xticklabels()) == ["101", "7"]
        assert texts(ax.get_yticklabels()) == ["un", "▁deux", "trois"]
        assert texts(heatmap(torch.rand(1, 3), "abc").get_xticklabels()) == ["a", "b", "c"]

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    @pytest.mark.parametrize("draw", [heatmap, alignment_flow])
    def test_without_a_font_one_warning_says_what_to_install(self, draw):
        with pytest.warns(UserWarning) as caught:
            ax = draw(torch.rand(2, 2), ["注意", "attention"], ["力", "注"])
        (warning,) = caught
        message = str(warning.message)
        assert "3 of the characters, the first 注 (U+6CE8)" in message
        assert "Noto Sans CJK" in message and "fonts-noto-cjk" in message
        assert warning.filename == __file__  # points at the reader's own line
        side = ax.get_xticklabels() if draw is heatmap else ax.get_yticklabels()
        assert texts(side) == [r"\u6ce8\u610f", "attention"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns of every glyph that it lacks
            ax.figure.canvas.draw()

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    @pytest.mark.parametrize("draw", [heatmap, alignment_flow])
    def test_an_installed_font_is_found(self, draw, tmp_path):
        install_font(tmp_path, "Squares", "注意力")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ax = draw(torch.rand(2, 2), ["注意", "mind"], ["力", "▁power"])
            ax.figure.canvas.draw()
        labels = ax.get_xticklabels() if draw is heatmap else ax.get_yticklabels()
        assert texts(labels) == ["注意", "mind"]
        assert labels[0].get_fontfamily()[-1] == "Squares"
        # Two characters of two ems each, in points times pixels per point
        ems = labels[0].get_window_extent().width / labels[0].get_fontsize() / (ax.figure.dpi / 72)
        assert ems == pytest.approx(4, abs=0.2)

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    def test_well_known_fonts_come_first_and_several_complete_each_other(self, tmp_path):
        install_font(tmp_path, "A Font That Sorts First", "注力")
        install_font(tmp_path, "Noto Sans CJK SC", "注意")
        (label, _) = heatmap(torch.rand(1, 2), ["注意", "力"]).get_xticklabels()
        assert label.get_fontfamily()[-2:] == ["Noto Sans CJK SC", "A Font That Sorts First"]

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    def test_a_damaged_font_is_passed_over(self, tmp_path):
        install_font(tmp_path, "Damaged", "注")
        (tmp_path / "Damaged.ttf").write_bytes(b"")
        with pytest.warns(UserWarning, match="no installed font"):
            heatmap([[1.0]], ["注"])

    def test_the_configured_font_is_kept_where_it_suffices(self):
        with matplotlib.rc_context({"font.family": "serif"}):
            (label,) = heatmap([[1.0]], ["été"]).get_xticklabels()
            assert label.get_fontfamily() == ["serif"]
        with matplotlib.rc_context({"font.family": "cmr10", "axes.formatter.use_mathtext": True}):
            (label,) = heatmap([[1.0]], ["▁the"]).get_xticklabels()
            assert label.get_fontfamily() == ["cmr10", "DejaVu Sans"]

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    def test_the_face_that_is_drawn_counts(self):
        """Light and condensed faces of a family lack glyphs that the regular one has."""
        path = next(f.fname for f in fontManager.ttflist if f.name == "cmr10")
        fontManager.ttflist.append(FontEntry(path, "DejaVu Sans", "normal", "normal", 200))
        with matplotlib.rc_context({"font.family": "cmr10", "axes.formatter.use_mathtext": True}):
            (label,) = heatmap([[1.0]], ["▁the"]).get_xticklabels()
            assert label.get_fontfamily() == ["cmr10", "DejaVu Sans"]

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    def test_any_installed_font_serves(self):
        (label,) = heatmap([[1.0]], ["Ⓐ"]).get_xticklabels()
        assert label.get_fontfamily()[-1] == "STIXGeneral"

    @pytest.mark.usefixtures("only_matplotlibs_fonts")
    def test_titles_too(self, tmp_path):
        with pytest.warns(UserWarning, match="no installed font"):
            (ax,) = heatmap([[[1.0]]], titles=["头"])
        assert ax.get_title() == r"\u5934"
        install_font(tmp_path, "Squares", "头")
        (ax,) = heatmap([[[1.0]]], titles=["头"])
        assert ax.get_title() == "头" and ax.title.get_fontfamily()[-1] == "Squares"


class TestAlignmentFlow:
    def test_bands_run_from_key_to_query(self):
        ax = alignment_flow(WEIGHTS, SOURCE, TARGET, threshold=0)
        assert pairs(ax, 2, 3) == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)}  # 0 is no band
        (right,) = ax.child_axes
        assert texts(ax.get_yticklabels()) == SOURCE
        assert texts(right.get_yticklabels()) == TARGET
        # The first on top, and each band ends beside its token
        assert ax.yaxis_inverted()
        assert np.allclose(ax.get_yticks(), [1 / 6, 3 / 6, 5 / 6])
        assert np.allclose(right.get_yticks(), [1 / 4, 3 / 4])
        assert {a for a, *_ in bands(ax)} == set(ax.get_yticks())
        assert {b for _, b, *_ in bands(ax)} == set(right.get_yticks())
        assert np.allclose(
            [path.vertices[[0, -1], 0] for path in ax.collections[0].get_paths()], [0, 1]
        )

    def test_larger_weights_are_wider_darker_and_on_top(self):
        weights = torch.rand(6, 7).softmax(-1)
        drawn = bands(alignment_flow(weights, threshold=0))
        weight = [weights[int(b * 6), int(a * 7)].item() for a, b, *_ in drawn]
        widths, opacity = [band[2] for band in drawn], [band[4] for band in drawn]
        assert len(drawn) == 42
        for values in (weight, widths, opacity):
            assert np.all(np.diff(values) > 0)
        steps = np.diff(widths) / np.diff(weight)
        assert np.allclose(steps, steps[0])  # width grows in proportion

    def test_the_same_weight_looks_the_same_beside_others(self):
        alone = bands(alignment_flow([[0.3, 0.0], [0.0, 0.0]]))
        beside = bands(alignment_flow([[0.3, 0.0], [0.0, 0.9]]))
        assert alone[0] == beside[0]

    def test_a_weight_of_one_keeps_to_the_height_of_its_token(self):
        ax = alignment_flow(torch.eye(5))
        ax.figure.canvas.draw()
        pitch = ax.get_window_extent().height / ax.figure.dpi * 72 / 5
        assert all(0.5 * pitch < width < pitch for _, _, width, *_ in bands(ax))

    def test_threshold(self):
        assert pairs(alignment_flow(WEIGHTS, threshold=0.4), 2, 3) == {(0, 0), (1, 1), (1, 2)}
        assert not bands(alignment_flow(WEIGHTS, threshold=2))

    def test_faint_weights_are_left_out_by_default(self):
        weights = [[0.97, 0.01, 0.02]]
        assert pairs(alignment_flow(weights), 1, 3) == {(0, 0), (0, 2)}
        assert len(bands(alignment_flow(torch.full((2, 100), 0.01)))) == 200

    def test_top_counts_for_each_target_and_head(self):
        weights = torch.rand(3, 4, 6)
        best = weights.argsort(dim=-1, descending=True)
        for h in range(3):
            expected = {(i, j) for i in range(4) for j in best[h, i, :2].tolist()}
            assert pairs(alignment_flow(weights, head=h, top=2, threshold=0), 4, 6) == expected
        assert len(bands(alignment_flow(weights, top=2, threshold=0))) == 3 * 4 * 2
        assert len(bands(alignment_flow(torch.ones(2, 5), top=3))) == 2 * 3  # ties

    def test_each_head_has_its_colour_and_lane(self):
        ax = alignment_flow(torch.ones(3, 2, 2))
        lanes = {}
        for a, _, _, colour, _ in bands(ax):
            lanes.setdefault(colour, set()).add(round(a, 6))
        assert list(map(len, lanes.values())) == [2, 2, 2]  # one height for each token
        assert lanes.keys() == {BLUE, ORANGE, RED}
        assert not set.intersection(*lanes.values())
        assert all(0 < min(heights) < 0.5 < max(heights) < 1 for heights in lanes.values())
        ax.figure.canvas.draw()
        high = ax.get_window_extent().height / ax.figure.dpi * 72
        first = sorted(min(heights) for heights in lanes.values())
        assert np.diff(first).min() * high > 0.9 * bands(ax)[0][2]  # side by side
        legend = ax.get_legend()
        assert texts(legend.get_texts()) == ["head 0", "head 1", "head 2"]
        assert [to_hex(h.get_color()) for h in legend.legend_handles] == [BLUE, ORANGE, RED]

    def test_one_head_keeps_its_colour(self):
        weights = torch.stack([torch.eye(2), torch.eye(2).flip(0), torch.eye(2)])
        ax = alignment_flow(weights, head=1)
        assert pairs(ax, 2, 2) == {(0, 1), (1, 0)}
        assert {band[3] for band in bands(ax)} == {ORANGE}
        assert ax.get_legend() is None

    def test_many_heads_have_different_colours(self):
        ax = alignment_flow(torch.ones(16, 1, 1))
        colours = np.array([to_rgb(band[3]) for band in bands(ax)])
        apart = np.linalg.norm(colours[:, None] - colours, axis=-1)[~np.eye(16, dtype=bool)]
        assert apart.min() > 0.1

    def test_long_sequences(self):
        source, target = [f"s{n}" for n in range(150)], [f"t{n}" for n in range(120)]
        ax = alignment_flow(torch.eye(120, 150), source, target)
        step = round(ax.get_yticks()[1] * 150 - 0.5)
        assert step > 1 and texts(ax.get_yticklabels()) == source[::step]
        assert np.allclose(np.diff(ax.get_yticks()), step / 150)
        assert not overlapping(ax, ax.get_yticklabels())
        assert not overlapping(ax, ax.child_axes[0].get_yticklabels())

    def test_draws_in_the_given_axes(self):
        _, axes = pyplot.subplots(1, 2)
        assert alignment_flow(WEIGHTS.half().requires_grad_(), ax=axes[1]) is axes[1]
        assert not axes[0].collections


class TestBadInput:
    @pytest.mark.parametrize("draw", [heatmap, alignment_flow])
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"weights": torch.ones(2, 8, 4, 4)}, r"got \(2, 8, 4, 4\): choose .* weights\[0\]"),
            ({"weights": torch.ones(4)}, r"got \(4,\): for a single query pass weights\[None\]"),
            ({"weights": torch.ones(0, 4)}, r"weights has shape \(0, 4\): there is nothing"),
            (
                {"weights": [[1.0, np.nan, np.inf], [0, 0, 0]]},
                r"2 of 6 are not, the first nan at \[0, 1\]: .*nan_to_num",
            ),
            (
                {"source": ["a", "b"]},
                r"source has 2 tokens, but weights has 3 keys, its last dimension: .*"
                r"weights\[..., :2\]",
            ),
            (
                {"target": ["a"]},
                r"target has 1 tokens, but weights has 2 queries, its dimension before the last: "
                r".*weights\[..., :1, :\]",
            ),
            ({"target": ["a", "b", "c"]}, r"target has 3 tokens.* name each of them$"),
            ({"source": "the red house"}, r"source has 13 characters \(split the str"),
        ],
    )
    def test_of_both(self, draw, changed, message):
        with pytest.raises(ValueError, match=message):
            draw(**{"weights": WEIGHTS, "source": SOURCE, "target": TARGET, **changed})

    @pytest.mark.parametrize("draw", [heatmap, alignment_flow])
    def test_no_weights(self, draw):
        with pytest.raises(TypeError, match=r"weights is None: .*need_weights=True"):
            draw(None)

    @pytest.mark.parametrize("draw", [heatmap, alignment_flow])
    def test_the_whole_result_of_a_layer(self, draw):
        with pytest.raises(TypeError, match=r"weights is a SequenceAttention: pass its \.weights"):
            draw(SequenceAttention(torch.ones(2, 4), WEIGHTS))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"titles": ["one", "two"]}, r"titles is \['one', 'two'\]; expected a list of 1"),
            ({"titles": "x"}, "titles is 'x'; expected a list of 1"),
            ({"vmax": 0}, "vmax is 0; expected a finite number above 0"),
            ({"vmax": float("nan")}, "vmax is nan"),
        ],
    )
    def test_of_the_heatmap(self, changed, message):
        with pytest.raises(ValueError, match=message):
            heatmap(WEIGHTS, **changed)

    def test_axes_that_do_not_fit_the_heads(self):
        _, axes = pyplot.subplots(1, 3)
        with pytest.raises(ValueError, match="ax has 3 axes; expected 2, one for each head"):
            heatmap(torch.rand(2, 4, 4), ax=axes)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"weights": WEIGHTS - 0.5}, "must not be negative in a flow; the least is -0.5"),
            ({"head": 1}, r"head must lie in 0\.\.0.*got 1"),
            ({"head": -1}, r"head must lie in 0\.\.0.*got -1"),
            ({"threshold": -0.1}, "threshold is -0.1; expected a finite number"),
            ({"top": 0}, "top is 0; expected at least 1 band"),
        ],
    )
    def test_of_the_flow(self, changed, message):
        with pytest.raises(ValueError, match=message):
            alignment_flow(**{"weights": WEIGHTS, **changed})


@pytest.mark.parametrize("name", ["heatmap", "alignment_flow"])
def test_without_matplotlib_the_module_loads_and_names_the_extra(monkeypatch, name):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *args, **kwargs)

    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", without)
    draw = runpy.run_path(sequence_attn.plot.__file__)[name]
    with pytest.raises(
        ModuleNotFoundError, match=r"matplotlib.*pip install 'gat-attention\[plot\]'"
    ):
        draw(WEIGHTS)
