"""Multi-head attention with free widths, any score, normaliser and support."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attn_core import Additive, Dense, Edges, Entmax, General, Softmax, backend
from sequence_attn import MultiHead, RotaryPositions

B, H, TQ, TK, D = 2, 3, 4, 5, 4
SCORES = (
    "additive",
    "concat",
    "cosine",
    "dot",
    "general",
    "location",
    "scaled_dot",
    "separable",
)
NORMALIZERS = ("softmax", "sparsemax", "entmax", "identity")


def layer(score="scaled_dot", normalizer="softmax", **options) -> MultiHead:
    options = {"max_length": 9} | options if score == "location" else options
    options = {"input_size": (6, 7, 8), "key_size": D} | options
    return MultiHead(H, 5, score=score, normalizer=normalizer, **options).double()


def tokens(queries: int = TQ, keys: int = TK) -> list[torch.Tensor]:
    shapes = ((B, queries, 6), (B, keys, 7), (B, keys, 8))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def score_by_hand(attention: MultiHead, h: int, q: torch.Tensor, k: torch.Tensor, j: int):
    """The score of head h of one projected query with the j-th projected key."""
    learned = {name: x[h] for name, x in attention.named_parameters() if name.startswith("score_")}
    match attention.score_name:
        case "dot":
            return q @ k
        case "scaled_dot":
            return q @ k / math.sqrt(D)
        case "cosine":
            return q @ k / (q.norm() * k.norm())
        case "general":
            return q @ learned["score_weight"] @ k
        case "location":
            return (learned["score_weight"] @ q)[j]
        case "concat":
            hidden = torch.tanh(learned["score_weight"] @ torch.cat([q, k]))
            return learned["score_vector"] @ hidden
        case "separable":
            return F.leaky_relu(
                learned["score_query_vector"] @ q + learned["score_key_vector"] @ k, 0.2
            )
        case "additive":
            return learned["score_vector"] @ torch.tanh(q + k)
    raise AssertionError(attention.score_name)


@pytest.mark.parametrize("score", SCORES)
def test_each_head_is_the_formula(score: str) -> None:
    attention = layer(score, bias=True)
    query, keys, values = tokens()
    context, weights = attention(query, keys, values, need_weights=True)
    parts = (attention.query, query), (attention.key, keys), (attention.value, values)
    for h in range(H):
        width = slice(h * D, (h + 1) * D), slice(h * D, (h + 1) * D), slice(h * 5, (h + 1) * 5)
        q, k, v = (
            x @ projection.weight[rows].T + projection.bias[rows]
            for (projection, x), rows in zip(parts, width, strict=True)
        )
        for b in range(B):
            for i in range(TQ):
                scores = [score_by_hand(attention, h, q[b, i], k[b, j], j) for j in range(TK)]
                expected = torch.stack(scores).softmax(0)
                torch.testing.assert_close(weights[b, h, i], expected)
                torch.testing.assert_close(context[b, i, width[2]], expected @ v[b])


@pytest.mark.parametrize("score", SCORES)
def test_heads_fused_equal_heads_looped(score: str) -> None:
    attention = layer(score, output_size=7, bias=True)
    query, keys, values = tokens()
    contexts, weights = [], []
    for h in range(H):
        one = MultiHead(
            1,
            5,
            D,
            input_size=(6, 7, 8),
            bias=True,
            score=score,
            max_length=9 if score == "location" else None,
        ).double()
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                fused = attention.get_parameter(name)
                rows = 1 if name.startswith("score_") else len(fused) // H
                parameter.copy_(fused[h * rows : (h + 1) * rows])
        read = one(query, keys, values, need_weights=True)
        contexts.append(read.context)
        weights.append(read.weights)
    expected = attention.output(torch.cat(contexts, -1)), torch.cat(weights, 1)
    torch.testing.assert_close(tuple(attention(query, keys, values, need_weights=True)), expected)


def test_the_plain_layer_of_the_formulas_has_three_matrices_and_no_more() -> None:
    attention = MultiHead(8, 16, input_size=128)
    shapes = {name: tuple(x.shape) for name, x in attention.named_parameters()}
    assert shapes == {f"{name}.weight": (128, 128) for name in ("query", "key", "value")}
    assert attention(torch.randn(2, 5, 128)).context.shape == (2, 5, 128)


def test_defaults_of_keys_and_values() -> None:
    attention = MultiHead(2, 3, input_size=6).double()
    query, other = torch.randn(2, B, TQ, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(query), attention(query, query, query))
    torch.testing.assert_close(attention(query, other), attention(query, other, other))


def test_lazy_widths_become_those_of_the_first_input() -> None:
    attention = MultiHead(2, 3, output_size=4, bias=True)
    query, keys, values = (x.float() for x in tokens())
    torch.manual_seed(3)
    first = attention(query, keys, values).context
    assert attention.query.weight.shape == (6, 6) and attention.value.weight.shape == (6, 8)
    torch.manual_seed(3)
    given = MultiHead(2, 3, input_size=(6, 7, 8), output_size=4, bias=True)
    given.load_state_dict(attention.state_dict())
    torch.testing.assert_close(given(query, keys, values).context, first)
    # drawn as given widths are: Glorot's uniform distribution, biases zero
    bound = math.sqrt(6 / (6 + 8))
    assert 0.5 * bound < attention.value.weight.abs().max() <= bound
    assert (attention.value.bias == 0).all()
    with pytest.raises(ValueError, match=r"query has shape \[2, 4, 7\].*width 6"):
        attention(torch.zeros(2, 4, 7))


def test_any_batch_dimensions_or_none() -> None:
    attention = layer()
    query, keys, values = tokens()
    context = attention(query, keys, values).context
    torch.testing.assert_close(attention(query[1], keys[1], values[1]).context, context[1])
    more = (x.expand(3, *x.shape) for x in (query, keys, values))
    torch.testing.assert_close(attention(*more).context, context.expand(3, -1, -1, -1))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=8)
@given(data=st.data())
def test_padding_changes_nothing(score: str, normalizer: str, data) -> None:
    attention = layer(score, normalizer, output_size=2, bias=True)
    query, keys, values = tokens()
    queries = data.draw(st.lists(st.integers(0, TQ), min_size=B, max_size=B))
    lengths = data.draw(st.lists(st.integers(0, TK), min_size=B, max_size=B))
    read = attention(
        query,
        keys,
        values,
        query_lengths=torch.tensor(queries),
        key_lengths=torch.tensor(lengths),
    )
    for b, (real, length) in enumerate(zip(queries, lengths, strict=True)):
        alone = attention(query[b, :real], keys[b, :length], values[b, :length])
        torch.testing.assert_close(read.context[b, :real], alone.context)
        assert (read.context[b, real:] == 0).all()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", [score for score in SCORES if score != "location"])
def test_dense_equals_the_complete_graph(score: str, normalizer: str) -> None:
    attention = layer(score, normalizer)
    query, keys, values = (x[0].requires_grad_() for x in tokens())
    key, node = torch.cartesian_prod(torch.arange(TK), torch.arange(TQ)).T
    edges = Edges.from_edge_index(torch.stack([key, node]), (TK, TQ))
    bias = torch.randn(H, TQ, TK, dtype=torch.float64)
    dense = attention(query, keys, values, bias=bias, need_weights=True)
    graph = attention(
        query, keys, values, bias=bias[:, node, key].T, support=edges, need_weights=True
    )
    torch.testing.assert_close(graph.context, dense.context)
    torch.testing.assert_close(graph.weights, dense.weights[:, node, key].T)
    leaves = [query, keys, values, *attention.parameters()]
    got, expected = (
        torch.autograd.grad(x.context.sin().sum() + x.weights.square().sum(), leaves)
        for x in (graph, dense)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("masked_by", ["lengths", "mask"])
@pytest.mark.parametrize("score", [score for score in SCORES if score != "location"])
def test_a_padded_batch_over_a_pattern(score: str, masked_by: str) -> None:
    attention = layer(score)
    query, keys, values = (x.requires_grad_() for x in tokens())
    edges = Edges.from_edge_index(torch.tensor([[0, 1, 2, 3, 1, 0], [0, 0, 1, 1, 2, 2]]), (TK, TQ))
    allowed = torch.zeros(TQ, TK, dtype=torch.bool)
    allowed[edges.query_index, edges.key_index] = True
    lengths = torch.tensor([TK, 2][: len(keys)])
    real = torch.arange(TK) < lengths[:, None]
    given = {"key_lengths": lengths} if masked_by == "lengths" else {"key_mask": real}
    bias = torch.randn(edges.num_edges, dtype=torch.float64)
    as_dense = torch.zeros(TQ, TK, dtype=torch.float64)
    as_dense[edges.query_index, edges.key_index] = bias
    pattern = attention(query, keys, values, support=edges, bias=bias, need_weights=True, **given)
    dense = attention(query, keys, values, mask=allowed, bias=as_dense, need_weights=True, **given)
    torch.testing.assert_close(pattern.context, dense.context)
    of_edges = dense.weights[:, :, edges.query_index, edges.key_index].mT
    torch.testing.assert_close(pattern.weights, of_edges)
    leaves = [query, keys, values, *attention.parameters()]
    got, expected = (torch.autograd.grad(x.context.sin().sum(), leaves) for x in (pattern, dense))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("score", SCORES)
def test_fast_path_equals_reference(score: str) -> None:
    attention = layer(score)
    inputs, lengths = tokens(), torch.tensor([2, 5])
    fast = attention(*inputs, key_lengths=lengths).context
    with backend("reference"):
        torch.testing.assert_close(attention(*inputs, key_lengths=lengths).context, fast)


def test_mask_causal_order_and_bias() -> None:
    attention = layer()
    query, keys, values = tokens()
    order = torch.ones(TQ, TK, dtype=torch.bool).tril(TK - TQ)
    causal = attention(query, keys, values, causal=True, need_weights=True)
    for mask in (order, order.expand(B, TQ, TK), order.expand(B, H, TQ, TK)):
        by_mask = attention(query, keys, values, mask=mask, need_weights=True)
        torch.testing.assert_close(by_mask, causal)
    added = torch.zeros(TQ, TK, dtype=torch.float64).masked_fill(~order, -math.inf)
    by_bias = attention(query, keys, values, bias=added, need_weights=True)
    torch.testing.assert_close(by_bias, causal)
    support = attention(query, keys, values, support=Dense(causal=True), need_weights=True)
    torch.testing.assert_close(support, causal)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_without_keys_reads_the_bias_of_the_output(need_weights: bool) -> None:
    attention = layer(output_size=2, bias=True)
    nn.init.normal_(attention.output.bias)
    query, keys, values = (x.requires_grad_() for x in tokens())
    lengths = torch.tensor([0, TK])
    context, weights = attention(
        query, keys, values, key_lengths=lengths, need_weights=need_weights
    )
    torch.testing.assert_close(context[0], attention.output.bias.expand(TQ, 2))
    assert weights is None or (weights[0] == 0).all()
    context.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (query, keys, values, *attention.parameters()))


@pytest.mark.parametrize("score", [score for score in SCORES if score != "location"])
@pytest.mark.parametrize("rotary", [False, True])
def test_cached_decoding_equals_full_decoding(score: str, rotary: bool) -> None:
    attention = layer(score, rotary=RotaryPositions(D) if rotary else None, output_size=3)
    query, keys, values = tokens(queries=6, keys=6)
    full = attention(query, keys, values, causal=True).context
    cache, contexts = None, []
    steps = [1, 2, 1, 2]
    for q, k, v in zip(*(x.split(steps, 1) for x in (query, keys, values)), strict=True):
        cache = attention.precompute(k, v, cache=cache)
        contexts.append(attention(q, cache=cache, causal=True).context)
    torch.testing.assert_close(torch.cat(contexts, 1), full)
    assert cache.length == 6


def test_rotary_positions_turn_queries_and_keys() -> None:
    attention, rotary = layer(key_size=D), RotaryPositions(D)
    turned = copy.deepcopy(attention)
    turned.rotary = rotary
    query, keys, _ = tokens(TK, TK)
    q = rotary(attention.query(query).unflatten(-1, (H, D)))
    k = rotary(attention.key(keys).unflatten(-1, (H, D)))
    expected = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)).softmax(-1)
    torch.testing.assert_close(turned.weights(query, keys), expected)
    assert not torch.allclose(attention.weights(query, keys), expected)


@pytest.mark.parametrize("score", SCORES)
def test_weights_without_values(score: str) -> None:
    attention = layer(score, "sparsemax")
    query, keys, values = tokens()
    given = {"key_lengths": torch.tensor([2, 5]), "causal": True}
    weights = attention(query, keys, values, need_weights=True, **given).weights
    torch.testing.assert_close(attention.weights(query, keys, **given), weights)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("score", ["scaled_dot", "additive"])
def test_window_equals_the_band_mask(score: str, masked: bool, causal: bool) -> None:
    attention = layer(score)
    local = copy.deepcopy(attention)
    local.window = 1
    inputs, lengths = tokens(), torch.tensor([5, 3])
    # The last query stands at the last key of its own sequence
    distance = torch.arange(TK) - (torch.arange(TQ) + lengths[:, None] - TQ)[..., None]
    band = distance.abs() <= 1
    mask = torch.rand(B, TQ, TK) < 0.7 if masked else None
    given = {"key_lengths": lengths, "causal": causal}
    read = local(*inputs, mask=mask, need_weights=True, **given)
    expected = attention(*inputs, mask=band if mask is None else band & mask, **given)
    torch.testing.assert_close(read.context, expected.context)
    assert read.weights.shape == (B, H, TQ, 2 if causal else 3)


def test_parts_given_as_objects_are_learned_with_the_layer() -> None:
    score = General(nn.Parameter(torch.randn(H, D, D)))
    attention = layer(score, Entmax(nn.Parameter(torch.tensor(1.7))))
    assert {"score_weight", "normalizer_alpha"} < {name for name, _ in attention.named_parameters()}
    inputs = tokens()
    context = attention(*inputs).context
    context.square().sum().backward()
    assert (attention.score_weight.grad != 0).any() and attention.normalizer_alpha.grad != 0
    other = copy.deepcopy(attention)
    with torch.no_grad():
        other.score_weight.zero_()
    assert not torch.allclose(other(*inputs).context, context)
    torch.testing.assert_close(attention(*inputs).context, context)
    other.load_state_dict(attention.state_dict())
    torch.testing.assert_close(other(*inputs).context, context)


def test_a_score_object_equals_the_named_score() -> None:
    named = layer("additive")
    given = layer(Additive(nn.Parameter(torch.empty(H, D))))
    given.load_state_dict(named.state_dict())
    inputs = tokens()
    torch.testing.assert_close(given(*inputs).context, named(*inputs).context)


def test_reset_parameters_draws_anew() -> None:
    attention = layer("general", Softmax(nn.Parameter(torch.tensor(2.0))), bias=True)
    before = copy.deepcopy(attention.state_dict())
    attention.reset_parameters()
    changed = {
        name for name, x in attention.state_dict().items() if not torch.equal(x, before[name])
    }
    assert changed == {"query.weight", "key.weight", "value.weight", "score_weight"}


def test_dropout_acts_in_training_and_on_the_context_alone() -> None:
    attention = layer(dropout=0.5)
    inputs = tokens()
    exact = attention.eval()(*inputs, need_weights=True)
    trained = attention.train()(*inputs, need_weights=True)
    torch.testing.assert_close(trained.weights, exact.weights)
    assert (trained.context != exact.context).any(-1).all()


@pytest.mark.parametrize("score", ["scaled_dot", "additive", "location"])
def test_gradients(score: str) -> None:
    attention = layer(score, output_size=2, bias=True)
    names, parameters = zip(*attention.named_parameters(), strict=True)
    inputs = [x.requires_grad_() for x in tokens(2, 3)]

    def run(query, keys, values, *parameters):
        named = dict(zip(names, parameters, strict=True))
        options = {"key_lengths": torch.tensor([0, 3])}
        return torch.func.functional_call(attention, named, (query, keys, values), options).context

    assert torch.autograd.gradcheck(run, (*inputs, *parameters), fast_mode=True)


@pytest.mark.parametrize("score", ["scaled_dot", "additive"])
def test_compiles_into_one_graph(score: str) -> None:
    attention = layer(score, output_size=2)
    inputs = tokens()
    given = {"query_lengths": torch.tensor([3, 4]), "key_lengths": torch.tensor([0, 5])}
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(*inputs, **given).context, attention(*inputs, **given).context
    )


@pytest.mark.parametrize("score", ["scaled_dot", "additive", "cosine"])
def test_autocast_gives_its_dtype(score: str) -> None:
    attention = layer(score, output_size=2).float()
    inputs = [x.float() for x in tokens()]
    exact = attention(*inputs).context
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(*inputs).context
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"size_per_head": 0}, "size_per_head is 0"),
        ({"key_size": -1}, "key_size is -1"),
        ({"input_size": (6, 0, 8)}, r"input_size\[1\] is 0"),
        ({"input_size": (6, 7)}, "expected one width, or those of queries, keys, values"),
        ({"output_size": 0}, "output_size is 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"window": -1}, "window is -1"),
        ({"score": "bilinear"}, "score is 'bilinear'; known ones are dot, scaled_dot"),
        ({"normalizer": "max"}, "normalizer is 'max'; known ones are softmax"),
        ({"score": "location"}, "'location' needs max_length"),
        ({"max_length": 4}, "'scaled_dot' has no use for max_length"),
        ({"score": Additive(), "max_length": 4}, "max_length is 4, but belongs to"),
    ],
)
def test_constructor_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHead(**{"heads": 2, "size_per_head": 3} | arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(B, TQ, 5)}, ValueError, r"query has shape \[2, 4, 5\].*width 6"),
        ({"query": torch.zeros(6)}, ValueError, r"query has shape \[6\]"),
        ({"keys": torch.zeros(B, 3, 7)}, ValueError, r"values has shape.*expected \[2, 3, 'Dv'\]"),
        ({"query": torch.zeros(3, TQ, 6)}, ValueError, "batch dimensions"),
        ({"query": torch.zeros(B, TQ, 6).long()}, TypeError, "query has dtype torch.int64"),
        (
            {"keys": torch.zeros(B, TK, 7).double()},
            TypeError,
            "keys has dtype torch.float64, but the parameters are torch.float32",
        ),
        ({"values": torch.zeros(B, TK, 8, device="meta")}, ValueError, "values is on meta, but"),
        ({"mask": torch.ones(TQ, TK)}, TypeError, "mask has dtype torch.float32.*bias="),
        ({"mask": torch.ones(TQ, 3, dtype=torch.bool)}, ValueError, r"mask has shape \[4, 3\]"),
        ({"key_lengths": torch.tensor([6, 1])}, ValueError, "key_lengths has the entry 6"),
        ({"key_lengths": torch.tensor([1])}, ValueError, r"key_lengths has shape \[1\]"),
        ({"query_lengths": torch.tensor([-1, 1])}, ValueError, "query_lengths has the entry -1"),
        ({"query_lengths": torch.tensor([1.0, 1.0])}, TypeError, "query_lengths has dtype"),
        (
            {"query_lengths": torch.zeros(B, dtype=torch.int64, device="meta")},
            ValueError,
            "query_lengths is on meta",
        ),
        ({"bias": torch.zeros(B, 4)}, ValueError, "bias has shape"),
        ({"causal": True, "support": Dense()}, ValueError, "causal is given beside support"),
        (
            {"key_lengths": torch.tensor([1, 1]), "support": Dense()},
            ValueError,
            "key_lengths is given beside support",
        ),
    ],
)
def test_forward_refuses(change: dict, error: type[Exception], message: str) -> None:
    attention = layer().float()
    query, keys, values = (x.float() for x in tokens())
    given = {"query": query, "keys": keys, "values": values} | change
    with pytest.raises(error, match=message):
        attention(given.pop("query"), given.pop("keys"), given.pop("values"), **given)


def test_cache_refuses() -> None:
    attention = layer()
    query, keys, values = tokens()
    cache = attention.precompute(keys, values)
    with pytest.raises(ValueError, match="keys or values are given beside cache"):
        attention(query, keys, values, cache=cache)
    with pytest.raises(ValueError, match=r"cache holds \[2, 5, 3, 4\], but what comes behind"):
        attention.precompute(keys[:1], values[:1], cache=cache)


def test_location_refuses_longer_sequences() -> None:
    with pytest.raises(ValueError, match=r"key has 5 positions.*at most 4"):
        layer("location", max_length=4)(*tokens())


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("score", ["scaled_dot", "additive"])
def test_grouped_heads_are_heads_whose_keys_and_values_repeat(score: str, key_heads: int) -> None:
    grouped = MultiHead(8, 3, 2, input_size=6, key_heads=key_heads, score=score).double()
    full = MultiHead(8, 3, 2, input_size=6, score=score).double()
    assert grouped.key.out_features == 2 * key_heads and grouped.value.out_features == 3 * key_heads
    state = grouped.state_dict()
    for name in ("key.weight", "value.weight"):  # query head h reads key head h // (8 / key_heads)
        per_head = state[name].unflatten(0, (key_heads, -1))
        state[name] = per_head[torch.arange(8) // (8 // key_heads)].flatten(0, 1)
    full.load_state_dict(state)
    x, lengths = torch.randn(2, 5, 6, dtype=torch.float64), torch.tensor([5, 3])
    given = {"key_lengths": lengths, "causal": True}
    torch.testing.assert_close(
        grouped(x, need_weights=True, **given), full(x, need_weights=True, **given)
    )
    torch.testing.assert_close(grouped(x, **given).context, full(x, **given).context)
    torch.testing.assert_close(grouped.weights(x, **given), full.weights(x, **given))
    cache = grouped.precompute(x)
    assert cache.key.shape == (2, 5, key_heads, 2)
    torch.testing.assert_close(grouped(x, cache=cache, **given), full(x, **given))


@pytest.mark.parametrize(
    ("key_heads", "message"), [(3, "does not divide heads, 8"), (0, "least 1")]
)
def test_key_heads_must_divide_the_heads(key_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"key_heads is {key_heads}.*{message}"):
        MultiHead(8, 3, key_heads=key_heads)
