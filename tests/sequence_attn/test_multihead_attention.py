"""MultiHeadAttention beside torch.nn.MultiheadAttention."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from torch import nn

from sequence_attn import MultiHeadAttention

B, H, TQ, TK, E = 2, 2, 3, 4, 8
WIDTHS = {"one width": {}, "free widths": {"kdim": 5, "vdim": 6}}
CONSTRUCTORS = [
    pytest.param(
        {"bias": bias, "add_bias_kv": kv, "add_zero_attn": zero, "batch_first": first} | widths,
        id=f"bias={bias}-kv={kv}-zero={zero}-batch_first={first}-{name}",
    )
    for bias, kv, zero, first in itertools.product([True, False], repeat=4)
    for name, widths in WIDTHS.items()
]


def pair(dtype=torch.float64, **options) -> tuple[nn.MultiheadAttention, MultiHeadAttention]:
    """Theirs and ours with the same parameters, none of them zero."""
    theirs = nn.MultiheadAttention(E, H, dtype=dtype, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiHeadAttention(E, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tokens(attention, batched=True, dtype=torch.float64, queries=TQ, keys=TK):
    shapes = []
    for time, width in ((queries, E), (keys, attention.kdim), (keys, attention.vdim)):
        batch = (B, time) if attention.batch_first else (time, B)
        shapes.append((*(batch if batched else (time,)), width))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def masks(batched: bool, dtype: torch.dtype):
    """Every kind of both masks, none of which forbids the first key."""

    def kinds(*shape):
        forbidden = torch.rand(shape) < 0.5
        forbidden[..., 0] = False
        added = torch.randn(shape, dtype=dtype)
        return forbidden, added.masked_fill(forbidden, -torch.inf)

    padding = (None, *kinds(*((B, TK) if batched else (TK,))))
    per_head = kinds((B if batched else 1) * H, TQ, TK)
    return [*itertools.product(padding, (None, *per_head)), *((None, x) for x in kinds(TQ, TK))]


def results(attention, inputs, key_padding_mask, attn_mask, **options):
    """Output, weights and all gradients, those of the masks included."""
    given = [
        None if x is None else x.detach().clone() for x in (*inputs, key_padding_mask, attn_mask)
    ]
    leaves = [x for x in given if x is not None and x.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    *inputs, key_padding_mask, attn_mask = given
    output, weights = attention(
        *inputs, key_padding_mask=key_padding_mask, attn_mask=attn_mask, **options
    )
    loss = output.sin().sum() + (0 if weights is None else weights.square().sum())
    gradients = torch.autograd.grad(loss, [*leaves, *attention.parameters()])
    return [output, *([] if weights is None else [weights]), *gradients]


def assert_same(theirs: list, ours: list, **tolerance) -> None:
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("options", CONSTRUCTORS)
def test_parity(options: dict) -> None:
    theirs, ours = pair(**options)
    for batched in (True, False):
        inputs = tokens(theirs, batched)
        cases = masks(batched, torch.float64)
        for padding, of_pairs in cases if batched else cases[::4]:
            for asked in ({"average_attn_weights": False}, {"need_weights": False}):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # theirs: masks of two dtypes
                    expected = results(theirs, inputs, padding, of_pairs, **asked)
                assert_same(expected, results(ours, inputs, padding, of_pairs, **asked))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_parity_in_float32(widths: dict, need_weights: bool) -> None:
    theirs, ours = pair(torch.float32, add_bias_kv=True, **widths)
    inputs = tokens(theirs, dtype=torch.float32)
    for padding, of_pairs in masks(True, torch.float32):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            expected = results(theirs, inputs, padding, of_pairs, need_weights=need_weights)
        got = results(ours, inputs, padding, of_pairs, need_weights=need_weights)
        assert_same(expected, got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key_is_value_only", [True, False])
def test_parity_of_self_attention_in_training_and_evaluation(key_is_value_only: bool) -> None:
    theirs, ours = pair(batch_first=True)
    x, y = torch.randn(2, B, TQ, E, dtype=torch.float64)
    inputs = (y, x, x) if key_is_value_only else (x, x, x)
    padding = torch.tensor([[False, False, False], [False, True, True]])
    for mode in (True, False):
        theirs.train(mode)
        ours.train(mode)
        for grad, given in itertools.product((True, False), (None, padding)):
            with torch.set_grad_enabled(grad):  # theirs: the fused path, without gradients
                expected = theirs(*inputs, key_padding_mask=given)
                torch.testing.assert_close(ours(*inputs, key_padding_mask=given), expected)


@pytest.mark.parametrize("options", CONSTRUCTORS)
def test_the_same_seed_gives_the_same_parameters_and_checkpoints_load_both_ways(options) -> None:
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(E, H, **options)
    torch.manual_seed(1)
    ours = MultiHeadAttention(E, H, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    torch.manual_seed(2)
    ours._reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    inputs = tokens(theirs, dtype=torch.float32)
    torch.testing.assert_close(ours(*inputs), theirs(*inputs))


def test_copies_and_pickles() -> None:
    _, ours = pair()
    inputs = tokens(ours)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(other(*inputs), ours(*inputs))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_is_causal_is_a_hint_about_the_mask(
    need_weights: bool, floating: bool, padded: bool
) -> None:
    theirs, ours = pair()
    inputs = tokens(theirs, queries=TK)
    causal = torch.ones(TK, TK, dtype=torch.bool).triu(1)
    if floating:
        causal = torch.zeros(TK, TK, dtype=torch.float64).masked_fill(causal, -torch.inf)
    padding = torch.tensor([[False] * TK, [False] * (TK - 1) + [True]]) if padded else None
    if padded and floating:
        padding = torch.zeros(B, TK, dtype=torch.float64).masked_fill(padding, -torch.inf)
    asked = {"need_weights": need_weights, "key_padding_mask": padding, "attn_mask": causal}
    torch.testing.assert_close(
        ours(*inputs, is_causal=True, **asked), theirs(*inputs, is_causal=True, **asked)
    )


def test_is_causal_needs_the_mask() -> None:
    theirs, ours = pair()
    inputs = tokens(theirs)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        theirs(*inputs, is_causal=True)
    with pytest.raises(ValueError, match=r"is_causal is True without attn_mask.*causal=True"):
        ours(*inputs, is_causal=True)


# The rows of the table in docs/compatibility.md


def test_difference_weights_are_those_before_dropout() -> None:
    theirs, ours = pair(dropout=0.5)
    inputs = tokens(theirs, keys=TK)
    expected = theirs.eval()(*inputs)[1]
    torch.testing.assert_close(ours(*inputs)[1], expected)  # in training
    assert (ours(*inputs)[0] != ours(*inputs)[0]).any()
    assert (theirs.train()(*inputs, average_attn_weights=False)[1] == 0).any()
    torch.testing.assert_close(ours.eval()(*inputs), theirs.eval()(*inputs))


def test_dropout_of_everything_leaves_the_bias() -> None:
    _, ours = pair(dropout=1.0)
    output, weights = ours(*tokens(ours))
    torch.testing.assert_close(output, ours.out_proj.bias.expand_as(output))
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, TQ, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float", "rows"])
def test_difference_a_fully_masked_row_gives_the_bias_and_finite_gradients(
    dtype: torch.dtype, need_weights: bool, kind: str
) -> None:
    _, ours = pair(dtype, batch_first=True)
    inputs = [x.requires_grad_() for x in tokens(ours, dtype=dtype)]
    given = {"key_padding_mask": torch.tensor([[True] * TK, [False] * TK])}
    if kind == "float":
        padding = given["key_padding_mask"]
        given["key_padding_mask"] = torch.zeros(B, TK, dtype=dtype).masked_fill(padding, -torch.inf)
    if kind == "rows":
        forbidden = torch.zeros(B, H, TQ, TK, dtype=torch.bool)
        forbidden[0] = True
        given = {"attn_mask": forbidden}
    output, weights = ours(*inputs, need_weights=need_weights, **given)
    torch.testing.assert_close(output[0], ours.out_proj.bias.expand_as(output[0]))
    assert (output[1] != ours.out_proj.bias).any() and output.isfinite().all()
    assert weights is None or ((weights[0] == 0).all() and (weights[1].sum(-1) > 0.9).all())
    loss = output.square().sum() + (0 if weights is None else weights.square().sum())
    gradients = torch.autograd.grad(loss, [*inputs, *ours.parameters()])
    assert all(x.isfinite().all() for x in gradients)
    assert all((x[0] == 0).all() and (x[1] != 0).any() for x in gradients[1:3])


def test_theirs_gives_nan_for_a_fully_masked_row() -> None:
    """Why the table has that row; if torch changes this, so should the table."""
    theirs, _ = pair()
    padding = torch.tensor([[True] * TK, [False] * TK])
    assert theirs(*tokens(theirs), key_padding_mask=padding)[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_difference_softmax_of_half_types_is_rounded_once(dtype: torch.dtype) -> None:
    _, ours = pair(dtype, batch_first=True)
    query, key, value = tokens(ours, dtype=dtype, keys=300)
    weights = ours(query, key, value, average_attn_weights=False)[1]
    q, k = (
        nn.functional.linear(x, weight, bias).unflatten(-1, (H, -1)).movedim(-2, -3).double()
        for x, weight, bias in zip(
            (query, key), ours.in_proj_weight.chunk(3), ours.in_proj_bias.chunk(3), strict=False
        )
    )
    exact = (q @ k.mT / (E / H) ** 0.5).softmax(-1)
    half_step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(weights.double(), exact, rtol=1.01 * half_step, atol=1e-7)


@pytest.mark.parametrize("need_weights", [True, False])
def test_difference_masks_of_two_dtypes_need_no_warning(need_weights: bool) -> None:
    theirs, ours = pair()
    inputs = tokens(theirs)
    padding = torch.tensor([[False] * TK, [False, True, True, True]])
    added = torch.randn(TQ, TK, dtype=torch.float64)
    given = {"key_padding_mask": padding, "attn_mask": added, "need_weights": need_weights}
    with pytest.warns(UserWarning, match="mismatched"):
        expected = theirs(*inputs, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(ours(*inputs, **given), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_difference_no_torchscript() -> None:
    theirs, ours = pair()
    torch.jit.script(theirs)
    with pytest.raises(torch.jit.frontend.NotSupportedError):
        torch.jit.script(ours)


@pytest.mark.parametrize("need_weights", [True, False])
def test_difference_masks_per_head(need_weights: bool) -> None:
    theirs, ours = pair()
    inputs = tokens(theirs)
    forbidden = torch.rand(B, H, TQ, TK) < 0.5
    forbidden[..., 0] = False
    for mask in (forbidden, torch.randn(B, H, TQ, TK, dtype=torch.float64)):
        expected = theirs(*inputs, attn_mask=mask.flatten(0, 1), need_weights=need_weights)
        got = ours(*inputs, attn_mask=mask, need_weights=need_weights)
        torch.testing.assert_close(got, expected)
        with pytest.raises(AssertionError):
            theirs(*inputs, attn_mask=mask)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(3, 5), (5, 5), (5, 3)])
def test_difference_causal_order_aligned_at_the_last_key(
    queries: int, keys: int, appended: bool, need_weights: bool
) -> None:
    theirs, ours = pair(add_bias_kv=appended, add_zero_attn=appended)
    inputs = tokens(theirs, queries=queries, keys=keys)
    forbidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    got = ours(*inputs, causal=True, need_weights=need_weights)
    torch.testing.assert_close(got, ours(*inputs, attn_mask=forbidden, need_weights=need_weights))
    if queries <= keys or appended:  # theirs has NaN in a row without keys
        expected = theirs(*inputs, attn_mask=forbidden, need_weights=need_weights)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}])
def test_difference_the_causal_hint_never_contradicts_the_mask(
    options: dict, need_weights: bool
) -> None:
    """Theirs aligns at the first key, and hides the appended one, where it follows the hint."""
    _, ours = pair(**options)
    queries = 3 if not options else 5
    inputs = tokens(ours, queries=queries, keys=5)
    forbidden = torch.ones(queries, 5, dtype=torch.bool).triu(5 - queries + 1)
    asked = {"attn_mask": forbidden, "need_weights": need_weights}
    torch.testing.assert_close(ours(*inputs, is_causal=True, **asked), ours(*inputs, **asked))


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, WIDTHS["free widths"]])
@pytest.mark.parametrize("appended", [True, False])
def test_difference_cached_decoding_equals_full_decoding(options: dict, appended: bool) -> None:
    _, ours = pair(add_bias_kv=appended, add_zero_attn=appended, **options)
    time = 1 if ours.batch_first else 0
    inputs = tokens(ours, queries=6, keys=6)
    full, full_weights = ours(*inputs, causal=True)
    cache, outputs = None, []
    for query, key, value in zip(*(x.split([1, 2, 1, 2], time) for x in inputs), strict=True):
        before = cache
        cache = ours.precompute(key, value, cache=cache)
        output, weights = ours(query, cache=cache, causal=True)
        outputs.append(output)
        assert before is None or before.length < cache.length  # the old one is left as it was
    torch.testing.assert_close(torch.cat(outputs, time), full)
    torch.testing.assert_close(weights, full_weights[:, -2:])


def test_difference_cached_memory_and_padding() -> None:
    _, ours = pair(batch_first=True)
    query, key, value = tokens(ours)
    padding = torch.tensor([[False] * TK, [False, False, True, True]])
    cache = ours.precompute(key, value)
    got = ours(query, cache=cache, key_padding_mask=padding)
    torch.testing.assert_close(got, ours(query, key, value, padding))
    unbatched = ours(query[0], cache=ours.precompute(key[0], value[0]))
    torch.testing.assert_close(unbatched, ours(query[0], key[0], value[0]))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", ["", "padding", "pairs", "added", "all"])
def test_difference_window_equals_the_band_mask(
    need_weights: bool, causal: bool, masked: str
) -> None:
    queries, keys, radius = 5, 7, 2
    _, plain = pair(batch_first=True)
    ours = MultiHeadAttention(E, H, batch_first=True, window=radius, dtype=torch.float64)
    ours.load_state_dict(plain.state_dict())
    inputs = tokens(ours, queries=queries, keys=keys)
    lengths = torch.tensor([keys, 4])
    padding = torch.arange(keys) >= lengths[:, None]
    # The last query stands at the last key of its own sequence that is not ignored
    ends = lengths if masked in ("padding", "all") else torch.tensor([keys, keys])
    here = torch.arange(queries) + ends[:, None] - queries
    distance = torch.arange(keys) - here[..., None]
    outside = (distance.abs() > radius).repeat_interleave(H, 0)
    given, banded = {}, {"attn_mask": outside}
    if masked in ("padding", "all"):
        given["key_padding_mask"] = banded["key_padding_mask"] = padding
    if masked in ("pairs", "all"):
        given["attn_mask"] = torch.rand(B * H, queries, keys) < 0.3
        banded["attn_mask"] = outside | given["attn_mask"]
    if masked == "added":
        given["attn_mask"] = torch.randn(queries, keys, dtype=torch.float64)
        banded["attn_mask"] = given["attn_mask"].masked_fill(outside, -torch.inf)
    asked = {"need_weights": need_weights, "causal": causal, "average_attn_weights": False}
    output, weights = ours(*inputs, **given, **asked)
    expected, dense = plain(*inputs, **banded, **asked)
    torch.testing.assert_close(output, expected)
    if need_weights:
        width = radius + 1 if causal else 2 * radius + 1
        assert weights.shape == (B, H, queries, width)
        for i, w in itertools.product(range(queries), range(width)):
            for b in range(B):
                j = int(here[b, i]) - radius + w
                of_pair = (
                    dense[b, :, i, j] if 0 <= j < keys else torch.zeros_like(dense[b, :, 0, 0])
                )
                torch.testing.assert_close(weights[b, :, i, w], of_pair)


# Inside torch's own layers


def swap(model: nn.Module) -> nn.Module:
    """The same model with ours in place of theirs."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.MultiheadAttention:
                ours = MultiHeadAttention(
                    child.embed_dim,
                    child.num_heads,
                    child.dropout,
                    bias=child.in_proj_bias is not None,
                    batch_first=child.batch_first,
                    dtype=child.out_proj.weight.dtype,
                ).train(child.training)
                ours.load_state_dict(child.state_dict())
                setattr(module, name, ours)
    return model


MODES = [(True, True), (False, True), (False, False)]  # training, gradients
PADDING = torch.arange(5) >= torch.tensor([[5], [3]])


@pytest.mark.parametrize(("training", "grad"), MODES)
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"bias": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_inside_torchs_encoder_layer(
    batch_first: bool, options: dict, training: bool, grad: bool
) -> None:
    options = {"dropout": 0.0, "batch_first": batch_first, "dtype": torch.float64} | options
    theirs = nn.TransformerEncoderLayer(E, H, 16, **options).train(training)
    ours = swap(theirs)
    x = torch.randn(*((2, 5) if batch_first else (5, 2)), E, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        for given in (
            {},
            {"src_key_padding_mask": PADDING},
            {"src_mask": causal},
            {"src_mask": causal, "is_causal": True},
            {"src_mask": causal == -torch.inf, "src_key_padding_mask": PADDING},
        ):
            torch.testing.assert_close(ours(x, **given), theirs(x, **given))


@pytest.mark.parametrize(("training", "grad"), MODES)
def test_inside_torchs_encoder_layer_a_fully_masked_row_stays_finite(
    training: bool, grad: bool
) -> None:
    layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True).train(training)
    ours, x = swap(layer), torch.randn(2, 5, E)
    padding = torch.tensor([[False] * 5, [True] * 5])
    with torch.set_grad_enabled(grad):
        output = ours(x, src_key_padding_mask=padding)
        assert output.isfinite().all()
        torch.testing.assert_close(output[0], ours(x[:1])[0])


@pytest.mark.parametrize(("training", "grad"), MODES)
def test_inside_torchs_encoder_with_nested_tensors(training: bool, grad: bool) -> None:
    """Swapped in after the stack was built, the module is handed nested tensors in evaluation."""
    layer = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True, dtype=torch.float64)
    theirs = nn.TransformerEncoder(layer, 2).train(training)
    ours, x = swap(theirs), torch.randn(2, 5, E, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        expected = theirs(x, src_key_padding_mask=PADDING)
        got = ours(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(got[~PADDING], expected[~PADDING])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(("training", "grad"), MODES)
def test_window_is_heeded_inside_torchs_encoder(training: bool, grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True, dtype=torch.float64)
    layer.self_attn = MultiHeadAttention(E, H, batch_first=True, window=1, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 1).train(training)
    x = torch.randn(1, 5, E, dtype=torch.float64)
    y = x.clone()
    y[:, 3:] += 1
    with torch.set_grad_enabled(grad):
        changed = (encoder(x) != encoder(y)).any(-1)[0]
    assert changed.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("training", [True, False])
def test_inside_torchs_decoder_layer(training: bool) -> None:
    theirs = nn.TransformerDecoderLayer(E, H, 16, dropout=0.0, dtype=torch.float64).train(training)
    ours = swap(theirs)
    x, memory = (torch.randn(time, 2, E, dtype=torch.float64) for time in (4, 5))
    causal = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    given = {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": PADDING}
    torch.testing.assert_close(ours(x, memory, **given), theirs(x, memory, **given))


def test_inside_torchs_transformer() -> None:
    theirs = nn.Transformer(E, H, 1, 1, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    ours = swap(theirs)
    x, y = (torch.randn(2, time, E, dtype=torch.float64) for time in (5, 4))
    torch.testing.assert_close(ours(x, y), theirs(x, y))


# Torch's machinery


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_compiles_into_one_graph(need_weights: bool, masked: bool) -> None:
    _, ours = pair(batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    inputs = tokens(ours)
    given = {"need_weights": need_weights}
    if masked:
        given["key_padding_mask"] = torch.tensor([[False] * TK, [True] * TK])
    torch.testing.assert_close(compiled(*inputs, **given), ours(*inputs, **given))


@pytest.mark.parametrize("need_weights", [True, False])
def test_autocast(need_weights: bool) -> None:
    theirs, ours = pair(torch.float32)
    inputs = tokens(theirs, dtype=torch.float32)
    padding = torch.tensor([[False] * TK, [False, True, True, True]])
    with torch.autocast("cpu", torch.bfloat16):
        expected = theirs(*inputs, key_padding_mask=padding, need_weights=need_weights)
        got = ours(*inputs, key_padding_mask=padding, need_weights=need_weights)
    assert got[0].dtype == expected[0].dtype == torch.bfloat16
    exact = ours(*inputs, key_padding_mask=padding, need_weights=need_weights)
    torch.testing.assert_close(got[0].float(), exact[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("need_weights", [True, False])
def test_gradients(need_weights: bool) -> None:
    _, ours = pair(add_bias_kv=True)
    inputs = [x.requires_grad_() for x in tokens(ours)]
    mask = torch.randn(TQ, TK, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[True] * TK, [False] * TK])
    names, parameters = zip(*ours.named_parameters(), strict=True)

    def run(query, key, value, mask, *parameters):
        result = torch.func.functional_call(
            ours,
            dict(zip(names, parameters, strict=True)),
            (query, key, value),
            {"attn_mask": mask, "key_padding_mask": padding, "need_weights": need_weights},
        )
        return [x for x in result if x is not None]

    assert torch.autograd.gradcheck(run, (*inputs, mask, *parameters), fast_mode=True)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 0}, "embed_dim is 0"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_heads": 3}, "num_heads is 3, which does not divide embed_dim, 8"),
        ({"kdim": -1}, "kdim is -1"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"window": -1}, "window is -1"),
        ({"window": 1, "add_bias_kv": True}, "window is 1, but the key of add_bias_kv"),
    ],
)
def test_constructor_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"embed_dim": E, "num_heads": H} | arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(B, TQ, 7)}, ValueError, r"query has shape \[2, 3, 7\].*width 8"),
        ({"query": torch.zeros(E)}, ValueError, r"query has shape \[8\]; expected \[B, T, E\] or"),
        (
            {"query": torch.zeros(TQ, E)},
            ValueError,
            r"key has shape \[2, 4, 8\]; expected \[T, E\]",
        ),
        ({"query": torch.zeros(3, TQ, E)}, ValueError, "batch size 3, but the keys have 2"),
        (
            {"key": torch.zeros(B, 5, E)},
            ValueError,
            r"value has shape \[2, 4, 8\]; expected \[2, 5",
        ),
        ({"key": None}, ValueError, "key and value are needed"),
        ({"query": torch.zeros(B, TQ, E).long()}, TypeError, "query has dtype torch.int64"),
        (
            {"value": torch.zeros(B, TK, E).double()},
            TypeError,
            "value has dtype torch.float64, but",
        ),
        ({"key": torch.zeros(B, TK, E, device="meta")}, ValueError, "key is on meta, but"),
        (
            {"key_padding_mask": torch.zeros(B, TQ, dtype=torch.bool)},
            ValueError,
            r"key_padding_mask has shape \[2, 3\]; expected \[2, 4\]",
        ),
        (
            {"key_padding_mask": torch.zeros(B, TK, dtype=torch.int64)},
            TypeError,
            "key_padding_mask has dtype torch.int64; expected bool, where True forbids, or float",
        ),
        (
            {"attn_mask": torch.zeros(B, TQ, TK, dtype=torch.bool)},
            ValueError,
            r"attn_mask has shape \[2, 3, 4\]; expected \[3, 4\] or \[4, 3, 4\] or \[2, 2, 3, 4\]",
        ),
        ({"attn_mask": torch.zeros(TQ, TK, dtype=torch.uint8)}, TypeError, "attn_mask has dtype"),
        (
            {"attn_mask": torch.zeros(TQ, TK, dtype=torch.bool, device="meta")},
            ValueError,
            "attn_mask is on meta, but query is on cpu",
        ),
    ],
)
def test_forward_refuses(change: dict, error: type[Exception], message: str) -> None:
    attention = MultiHeadAttention(E, H, batch_first=True)
    given = {
        "query": torch.zeros(B, TQ, E),
        "key": torch.zeros(B, TK, E),
        "value": torch.zeros(B, TK, E),
    }
    with pytest.raises(error, match=message):
        attention(**given | change)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("nested", "options"),
    [("q", {}), ("k", {}), ("qkv", {"causal": True}), ("qkv", {"is_causal": True})],
)
def test_nested_tensors_are_refused_but_for_plain_self_attention(nested: str, options) -> None:
    attention = MultiHeadAttention(E, H, batch_first=True)
    ragged = torch.nested.nested_tensor([torch.zeros(2, E), torch.zeros(3, E)])
    inputs = [ragged if name in nested else torch.zeros(2, 3, E) for name in "qkv"]
    with pytest.raises(ValueError, match="a nested tensor is served for self-attention alone"):
        attention(*inputs, **options)


def test_cache_refuses() -> None:
    attention = MultiHeadAttention(E, H, batch_first=True)
    x = torch.zeros(B, TQ, E)
    cache = attention.precompute(x)
    with pytest.raises(ValueError, match="key or value are given beside cache"):
        attention(x, x, x, cache=cache)
    with pytest.raises(ValueError, match="batch size 1, but the keys have 2"):
        attention(x[:1], cache=cache)
    with pytest.raises(ValueError, match=r"cache holds \[2, 3, 2, 4\], but what comes behind"):
        attention.precompute(x[:1], cache=cache)
