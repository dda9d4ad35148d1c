"""The general attention layer over padded batches."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_core import Entmax, Normalizer, Softmax, backend
from sequence_attn import Attention, Memory

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


def layer(score: str, normalizer="softmax", width: int = 4, **options) -> Attention:
    options = {"max_length": 9} | options if score == "location" else options
    return Attention(score, normalizer, query_size=width, **options).double()


def batch(queries: int = 3, keys: int = 5, width: int = 4) -> tuple[torch.Tensor, ...]:
    shapes = ((2, queries, width), (2, keys, width), (2, keys, 3))
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def logits_by_hand(attention: Attention, q: torch.Tensor, k: torch.Tensor, j: int) -> torch.Tensor:
    """The score of one query with the j-th key k, as the literature writes it."""
    match attention.score_name:
        case "dot":
            return q @ k
        case "scaled_dot":
            return q @ k / math.sqrt(len(q))
        case "cosine":
            return q @ k / (q.norm() * k.norm())
        case "general":
            return q @ attention.weight @ k
        case "location":
            return (attention.weight @ q)[j]
        case "concat":
            return attention.vector @ torch.tanh(attention.weight @ torch.cat([q, k]))
        case "separable":
            return F.leaky_relu(attention.query_vector @ q + attention.key_vector @ k, 0.2)
        case "additive":
            hidden = attention.query_weight @ q + attention.key_weight @ k
            return attention.vector @ torch.tanh(hidden)
    raise AssertionError(attention.score_name)


@pytest.mark.parametrize("score", SCORES)
def test_each_score_is_its_formula(score: str) -> None:
    attention = layer(score)
    query, keys, values = batch()
    context, weights = attention(query, keys, values, need_weights=True)
    for b in range(2):
        for i in range(3):
            scores = [logits_by_hand(attention, query[b, i], keys[b, j], j) for j in range(5)]
            expected = torch.stack(scores).softmax(0)
            torch.testing.assert_close(weights[b, i], expected)
            torch.testing.assert_close(context[b, i], expected @ values[b])


def test_dot_attention_worked_out_by_hand() -> None:
    attention = Attention("dot", query_size=1)
    keys = torch.tensor([[[0.0], [math.log(3.0)]]])
    context, weights = attention(
        torch.ones(1, 1), keys, torch.tensor([[[4.0], [8.0]]]), need_weights=True
    )
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(context, torch.tensor([[7.0]]))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(0, 5), min_size=2, max_size=2), data=st.data())
def test_padding_changes_nothing(score: str, normalizer: str, lengths: list[int], data) -> None:
    attention = layer(score, normalizer)
    query, keys, values = batch()
    context = attention(query, keys, values, lengths=torch.tensor(lengths)).context
    for b, length in enumerate(lengths):
        alone = attention(query[b : b + 1], keys[b : b + 1, :length], values[b : b + 1, :length])
        torch.testing.assert_close(context[b : b + 1], alone.context)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    torch.testing.assert_close(attention(query, keys, values, key_mask=mask).context, context)


@pytest.mark.parametrize("score", SCORES)
def test_a_single_query_is_a_sequence_of_one(score: str) -> None:
    attention = layer(score)
    query, keys, values = batch(queries=1)
    many = attention(query, keys, values, need_weights=True)
    one = attention(query[:, 0], keys, values, need_weights=True)
    torch.testing.assert_close(one.context, many.context[:, 0])
    torch.testing.assert_close(one.weights, many.weights[:, 0])
    assert attention(query[:, 0], keys, values).weights is None


def test_values_default_to_the_keys() -> None:
    query, keys, _ = batch()
    attention = layer("general")
    torch.testing.assert_close(attention(query, keys).context, attention(query, keys, keys).context)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("score", SCORES)
def test_a_query_without_keys_reads_zeros_and_keeps_gradients_finite(
    score: str, need_weights: bool
) -> None:
    attention = layer(score)
    query, keys, values = (x.requires_grad_() for x in batch())
    lengths = torch.tensor([0, 5])
    context, weights = attention(query, keys, values, lengths=lengths, need_weights=need_weights)
    assert (context[0] == 0).all()
    assert weights is None or (weights[0] == 0).all()
    context.sum().backward()
    gradients = [x.grad for x in (query, keys, values, *attention.parameters())]
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert (values.grad[0] == 0).all() and (values.grad[1] != 0).any()


def test_mask_of_pairs_causal_order_and_bias() -> None:
    query, keys, values = batch(queries=5)
    attention = layer("scaled_dot")
    causal = attention(query, keys, values, causal=True)
    triangle = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 5, 5)
    by_mask = attention(query, keys, values, mask=triangle, need_weights=True)
    torch.testing.assert_close(causal.context, by_mask.context)
    torch.testing.assert_close(causal.context[:, 0], values[:, 0])  # the first sees itself alone
    bias = torch.zeros(5, 5, dtype=torch.float64).masked_fill(~triangle[0], -math.inf)
    by_bias = attention(query, keys, values, bias=bias.expand(2, 5, 5), need_weights=True)
    torch.testing.assert_close(by_bias, by_mask)


@pytest.mark.parametrize("score", SCORES)
def test_fast_path_equals_reference(score: str) -> None:
    attention = layer(score)
    query, keys, values = batch()
    lengths = torch.tensor([2, 5])
    fast = attention(query, keys, values, lengths=lengths).context
    with backend("reference"):
        torch.testing.assert_close(attention(query, keys, values, lengths=lengths).context, fast)


@pytest.mark.parametrize("score", SCORES)
def test_gradients(score: str) -> None:
    attention = layer(score)
    query, keys, values = (x.requires_grad_() for x in batch(queries=2, keys=3))
    parameters = dict(attention.named_parameters())

    def context(query, keys, values, *given):
        arguments = (query, keys, values)
        options = {"lengths": torch.tensor([1, 3])}
        named = dict(zip(parameters, given, strict=True))
        return torch.func.functional_call(attention, named, arguments, options).context

    assert torch.autograd.gradcheck(context, (query, keys, values, *parameters.values()))


def test_learned_temperature_and_alpha_are_parameters() -> None:
    query, keys, values = batch()
    for normalizer in (
        Softmax(torch.nn.Parameter(torch.tensor(2.0))),
        Entmax(torch.nn.Parameter(torch.tensor(1.7))),
    ):
        attention = layer("dot", normalizer)
        (name, parameter), *others = attention.named_parameters()
        assert name.startswith("normalizer_") and not others
        attention(query, keys, values).context.square().sum().backward()
        assert parameter.grad.abs() > 0
        other = copy.deepcopy(attention)
        with torch.no_grad():
            next(iter(other.parameters())).add_(0.2)
        assert not torch.allclose(
            other(query, keys, values).context, attention(query, keys, values).context
        )
        other.load_state_dict(attention.state_dict())
        torch.testing.assert_close(other(query, keys, values), attention(query, keys, values))


def test_a_learned_temperature_can_be_swapped() -> None:
    """torch.func and load_state_dict(assign=True) put other tensors in a parameter's place."""
    query, keys, values = batch()
    attention = layer("dot", Softmax(torch.nn.Parameter(torch.tensor(2.0))))
    expected = layer("dot", Softmax(0.5))(query, keys, values).context
    other = {"normalizer_temperature": torch.tensor(0.5, dtype=torch.float64, requires_grad=True)}
    context = torch.func.functional_call(attention, other, (query, keys, values)).context
    torch.testing.assert_close(context, expected)
    (gradient,) = torch.autograd.grad(context.square().sum(), list(other.values()))
    assert gradient != 0
    attention.load_state_dict(other, assign=True)
    torch.testing.assert_close(attention(query, keys, values).context, expected)
    torch.testing.assert_close(attention.weights(query, keys) @ values, expected)


def test_a_normalizer_of_ones_own() -> None:
    class Uniform(Normalizer):
        def normalize(self, scores, rows):
            there = (scores > -math.inf).to(scores.dtype)
            return there / rows.spread(rows.sum(there))

    query, keys, values = batch()
    context = layer("dot", Uniform())(query, keys, values, lengths=torch.tensor([5, 2])).context
    torch.testing.assert_close(context[0], values[0].mean(0).expand(3, -1))
    torch.testing.assert_close(context[1], values[1, :2].mean(0).expand(3, -1))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=8)
@given(
    lengths=st.none() | st.lists(st.integers(0, 5), min_size=2, max_size=2),
    masked=st.sampled_from([None, (3, 5), (2, 1, 5), (2, 3, 5)]),
    biased=st.sampled_from([None, (3, 5), (1, 3, 5), (2, 3, 5)]),
    causal=st.booleans(),
)
def test_a_memory_and_weights_alone_change_nothing(
    score: str, normalizer: str, lengths, masked, biased, causal: bool
) -> None:
    attention, (query, keys, values) = layer(score, normalizer), batch()
    lengths = None if lengths is None else torch.tensor(lengths)
    options = {
        "mask": None if masked is None else torch.rand(masked) > 0.3,
        "bias": None if biased is None else torch.randn(biased, dtype=torch.float64),
        "causal": causal,
    }
    once = attention(query, keys, values, lengths=lengths, need_weights=True, **options)
    memory = attention.precompute(keys, values, lengths=lengths)
    torch.testing.assert_close(attention(query, memory, need_weights=True, **options), once)
    torch.testing.assert_close(attention(query, memory, **options).context, once.context)
    torch.testing.assert_close(attention.weights(query, memory, **options), once.weights)
    torch.testing.assert_close(
        attention.weights(query, keys, lengths=lengths, **options), once.weights
    )
    torch.testing.assert_close(once.weights @ values, once.context)


@pytest.mark.parametrize("score", SCORES)
def test_a_decoding_loop_over_a_memory_has_the_gradients_of_one_call(score: str) -> None:
    attention = layer(score)
    tensors = [x.requires_grad_() for x in batch()]
    query, keys, values = tensors
    lengths, wanted = torch.tensor([2, 5]), [*tensors, *attention.parameters()]
    together = attention(query, keys, values, lengths=lengths).context
    memory = attention.precompute(keys, values, lengths=lengths)
    steps = [attention(query[:, t], memory, step=t).context for t in range(3)]
    torch.testing.assert_close(torch.stack(steps, 1), together)
    gradients = (
        torch.autograd.grad(context.square().sum(), wanted, allow_unused=True)
        for context in (together, torch.stack(steps, 1))
    )
    for one, other in zip(*gradients, strict=True):
        assert one is other is None or torch.allclose(one, other)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 2])])
def test_a_memory_holds_any_choice_of_its_sequences(score: str, lengths) -> None:
    attention, (_, keys, values) = layer(score), batch()
    memory = attention.precompute(keys, values, lengths=lengths)
    index = torch.tensor([1, 0, 1])
    chosen = attention.precompute(
        keys[index], values[index], lengths=None if lengths is None else lengths[index]
    )
    query = torch.randn(3, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(
        attention(query, memory.select(index), need_weights=True),
        attention(query, chosen, need_weights=True),
    )
    twice = memory.repeat(2)  # sequences 0, 0, 1, 1
    for have, want in zip(twice, memory.select(torch.tensor([0, 0, 1, 1])), strict=True):
        torch.testing.assert_close(have, want)
    assert len(memory.key) == 2  # as it was
    with pytest.raises(AttributeError):
        memory.value = keys


def test_a_memory_holds_projected_keys() -> None:
    keys = batch()[1]
    for score, name in (("additive", "key_weight"), ("concat", "weight")):
        attention = layer(score)
        weight = getattr(attention, name)[:, -4:]
        memory = attention.precompute(keys)
        torch.testing.assert_close(memory.key, keys @ weight.T)
        assert memory.value is keys and memory.lengths is None
    unit = layer("cosine").precompute(keys).key
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close(unit * keys.norm(dim=-1, keepdim=True), keys)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_what_stands_behind_the_lengths_does_not_leak(score: str, nothing: float) -> None:
    attention, (query, keys, values) = layer(score), batch()
    lengths = torch.tensor([5, 2])
    clean = attention(query, keys, values, lengths=lengths, need_weights=True)
    keys[1, 2:] = values[1, 2:] = nothing
    tensors = [x.requires_grad_() for x in (query, keys, values)]
    dirty = attention(*tensors, lengths=lengths, need_weights=True)
    torch.testing.assert_close(dirty, clean)
    context = attention(*tensors, lengths=lengths).context
    torch.testing.assert_close(context, clean.context)
    for output in (context, dirty.context):
        wanted = [*tensors, *attention.parameters()]
        gradients = torch.autograd.grad(output.square().sum(), wanted, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert keys[1, 2].isnan().all() or keys[1, 2].isinf().all()  # the caller's are left alone


def test_dropout_acts_in_training_and_on_the_context_alone() -> None:
    attention = layer("dot", dropout=0.5)
    query, keys, _ = batch(keys=50)
    ones = torch.ones(2, 50, 1, dtype=torch.float64)
    trained = attention(query, keys, ones, need_weights=True)
    assert (trained.context != 1).all()
    torch.testing.assert_close(trained.weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(
        attention.eval()(query, keys, ones).context, torch.ones(2, 3, 1, dtype=torch.float64)
    )


@pytest.mark.parametrize("score", ["additive", "dot", "location"])
def test_compiles_without_graph_break(score: str) -> None:
    attention = layer(score)
    query, keys, values = batch()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    lengths = torch.tensor([2, 5])
    torch.testing.assert_close(
        compiled(query, keys, values, lengths=lengths).context,
        attention(query, keys, values, lengths=lengths).context,
    )


def test_autocast_gives_its_dtype() -> None:
    attention = Attention("additive", query_size=4)
    query, keys, values = (x.float() for x in batch())
    exact = attention(query, keys, values).context
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(query, keys, values).context
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "bilinear"}, "score is 'bilinear'; known ones are dot, scaled_dot"),
        ({"normalizer": "max"}, "normalizer is 'max'; known ones are softmax"),
        ({"activation": "sin"}, "activation is 'sin'; known ones are identity"),
        ({"query_size": 0}, "query_size is 0"),
        ({"attention_size": -1}, "attention_size is -1"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"score": "dot", "key_size": 3}, "use 'general', 'concat' or 'additive'"),
        ({"score": "location"}, "'location' needs max_length"),
        ({"max_length": 4}, "'additive' has no use for max_length"),
    ],
)
def test_constructor_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(**{"query_size": 4} | arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(2, 3, 5)}, ValueError, r"query has shape \[2, 3, 5\].*width 4"),
        ({"query": torch.zeros(4)}, ValueError, r"query has shape \[4\]"),
        ({"keys": torch.zeros(2, 4)}, ValueError, r"keys has shape \[2, 4\]"),
        ({"values": torch.zeros(2, 4, 3)}, ValueError, r"values has shape \[2, 4, 3\]"),
        ({"query": torch.zeros(3, 3, 4)}, ValueError, "batch size 3, but keys 2"),
        (
            {"mask": torch.ones(2, 5)},
            ValueError,
            r"mask has shape \[2, 5\].* = \[3, 5\].*key_mask=",
        ),
        ({"mask": torch.ones(3, 5)}, TypeError, "mask has dtype torch.float32.*bias="),
        ({"key_mask": torch.ones(2, 5)}, TypeError, "key_mask has dtype torch.float32"),
        ({"key_mask": torch.ones(3, 5) > 0}, ValueError, r"key_mask has shape \[3, 5\]; expected"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, ValueError, "mask has shape"),
        ({"lengths": torch.tensor([6, 1])}, ValueError, "lengths has the entry 6"),
        ({"lengths": torch.tensor([-1, 1])}, ValueError, "lengths has the entry -1"),
        ({"lengths": torch.tensor([1])}, ValueError, r"lengths has shape \[1\]; expected \[2\]"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths has dtype torch.float32"),
        ({"bias": torch.zeros(2, 4)}, ValueError, "bias has shape"),
        ({"bias": torch.zeros(2, 5)}, ValueError, r"bias has shape \[2, 5\].*bias.unsqueeze\(1\)"),
        ({"query": torch.zeros(2, 3, 4).long()}, TypeError, "query has dtype torch.int64.*float"),
        ({"keys": torch.zeros(2, 5, 4).double()}, TypeError, "keys has dtype torch.float64, but"),
        ({"query": torch.zeros(2, 3, 4).half()}, TypeError, "query has dtype torch.float16, but"),
        ({"keys": torch.zeros(2, 5, 4).to("meta")}, ValueError, "keys is on meta, but.*move one"),
        ({"query": torch.zeros(2, 4).to("meta")}, ValueError, "query is on meta, but.*move one"),
        ({"values": torch.zeros(2, 5, 3).to("meta")}, ValueError, "value is on meta.*move one"),
        ({"lengths": torch.ones(2).long().to("meta")}, ValueError, "lengths is on meta.*move one"),
    ],
)
def test_forward_refuses(change: dict, error: type[Exception], message: str) -> None:
    attention = Attention("general", query_size=4)
    given = {"query": torch.zeros(2, 3, 4), "keys": torch.zeros(2, 5, 4)} | change
    with pytest.raises(error, match=message):
        attention(given.pop("query"), given.pop("keys"), **given)


def test_location_refuses_longer_sequences() -> None:
    attention = Attention("location", query_size=4, max_length=4)
    with pytest.raises(ValueError, match=r"key has 5 positions.*at most 4"):
        attention(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))


def test_without_parameters_queries_and_keys_must_still_meet() -> None:
    with pytest.raises(ValueError, match=r"query is on cpu, but keys are on meta: move one"):
        Attention("dot", query_size=4)(torch.zeros(2, 4), torch.zeros(2, 5, 4, device="meta"))


@pytest.mark.parametrize(
    ("query", "given", "message"),
    [
        (torch.zeros(2, 4), {"values": torch.zeros(2, 5, 3)}, "values is given beside a memory"),
        (torch.zeros(2, 4), {"lengths": torch.tensor([5, 5])}, "lengths is given beside a memory"),
        (torch.zeros(3, 4), {}, "query has batch size 3, but keys 2"),
    ],
)
def test_a_memory_brings_its_own_values_and_lengths(
    query: torch.Tensor, given: dict, message: str
) -> None:
    attention = Attention("general", query_size=4)
    memory = attention.precompute(torch.zeros(2, 5, 4))
    assert isinstance(memory, Memory)
    with pytest.raises(ValueError, match=message):
        attention(query, memory, **given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keys": torch.zeros(2, 5, 3)}, ValueError, r"keys has shape \[2, 5, 3\].*width 4"),
        (
            {"keys": torch.zeros(5, 4)},
            ValueError,
            r"keys has shape \[5, 4\]; expected \[B, T, Dk\]",
        ),
        ({"values": torch.zeros(2, 4, 3)}, ValueError, r"values has shape \[2, 4, 3\]; expected"),
        ({"values": torch.zeros(5, 3)}, ValueError, r"values has shape \[5, 3\]; expected \[2, 5,"),
        ({"lengths": torch.tensor([6, 1])}, ValueError, "lengths has the entry 6; expected 0 to 5"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, r"lengths has shape \[3\]; expected"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths has dtype torch.float32"),
    ],
)
def test_precompute_refuses(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Attention("general", query_size=4).precompute(**{"keys": torch.zeros(2, 5, 4)} | change)


def test_a_memory_of_another_layer_is_refused() -> None:
    keys, query = torch.zeros(2, 5, 4), torch.zeros(2, 4)
    other = Attention("additive", query_size=4, attention_size=7).precompute(keys)
    for attention in (Attention("additive", query_size=4), Attention("general", query_size=4)):
        with pytest.raises(ValueError, match=r"width.*7"):
            attention(query, other)


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
def test_queries_that_are_not_real_read_zeros(normalizer: str) -> None:
    attention = Attention("additive", normalizer, query_size=3)
    query, keys = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    real = torch.tensor([[True, True, False, True], [False, True, True, True]])
    expected = attention(query, keys, lengths=torch.tensor([5, 2]), need_weights=True)
    query = query.masked_fill(~real.unsqueeze(-1), torch.nan).requires_grad_()
    found = attention(query, keys, lengths=torch.tensor([5, 2]), query_mask=real, need_weights=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs * real.unsqueeze(-1))
    found.context.sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()
    torch.testing.assert_close(
        attention.weights(query, keys, query_mask=real, causal=True),
        attention.weights(query.detach().nan_to_num(), keys, causal=True) * real.unsqueeze(-1),
    )


def test_a_single_query_that_is_not_real_reads_zeros() -> None:
    attention = Attention("dot", query_size=3)
    query, keys = torch.randn(2, 3), torch.randn(2, 5, 3)
    context = attention(query, keys, query_mask=torch.tensor([True, False])).context
    torch.testing.assert_close(context[0], attention(query, keys).context[0])
    assert not context[1].any()
    with pytest.raises(
        ValueError, match=r"query_mask has shape \[2, 1\]; expected \[2\], one entry"
    ):
        attention(query, keys, query_mask=torch.ones(2, 1, dtype=torch.bool))
