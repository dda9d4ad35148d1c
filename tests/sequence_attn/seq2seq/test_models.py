"""Whole models: the same whether a target is told at once, step by step, or one by one."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sequence_attn import HardAttention, LuongAttention
from sequence_attn.attention import Attention
from sequence_attn.seq2seq import (
    AttentionDecoder,
    EncoderDecoder,
    RecurrentEncoder,
    Seq2Seq,
    Transformer,
    bahdanau,
    context_only,
    grammar,
    luong,
    plain,
)
from sequence_attn.transformer import TransformerDecoder

SOURCE, TARGET = 11, 9  # sizes of the vocabularies
B, TS, T, E, H = 3, 6, 5, 6, 4
D = 2 * H
LENGTHS = torch.tensor([6, 2, 4])


def recurrent(make, cell: str = "gru") -> Seq2Seq:
    encoder = RecurrentEncoder(E, H, cell, bidirectional=True)
    return Seq2Seq(encoder, make(), source_size=SOURCE, target_size=TARGET)


def transformer(positions: str, **options) -> Transformer:
    longest = 9 if positions == "learned" else None
    return Transformer(
        SOURCE,
        TARGET,
        **{"size": 8, "heads": 2, "layers": 2, "positions": positions, "max_length": longest}
        | options,
    )


MODELS = {
    "bahdanau": lambda: recurrent(lambda: bahdanau(E, D, H)),
    "luong": lambda: recurrent(lambda: luong(E, D, D)),
    "luong without input feeding": lambda: recurrent(lambda: luong(E, D, D, input_feeding=False)),
    "local-m": lambda: recurrent(lambda: luong(E, D, D, attention="local-m", window=1)),
    "context_only": lambda: recurrent(lambda: context_only(E, D, D)),
    "grammar": lambda: recurrent(lambda: grammar(E, D, D, reads=2), "lstm"),
    "plain": lambda: recurrent(lambda: plain(E, D, D, context=True)),
    "hard": lambda: recurrent(
        lambda: luong(E, D, D, attention=HardAttention(query_size=D), input_feeding=False)
    ),
    **{
        name: lambda name=name: transformer(name)
        for name in ("sinusoidal", "learned", "rotary", "alibi", "t5")
    },
    "transformer, post-norm, untied": lambda: transformer(
        "sinusoidal", norm_first=False, tie="none", layers=(1, 2)
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str) -> EncoderDecoder:
    model = MODELS[name]().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def tokens() -> tuple[Tensor, Tensor]:
    target = torch.randint(4, TARGET, (B, T))
    target[:, 0] = 2
    return torch.randint(4, SOURCE, (B, TS)), target


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs)


@every_model
def test_a_target_told_at_once_and_step_by_step(name):
    """With what a step need not compute again, and with all of the beginning decoded anew."""
    model, (source, target) = model_of(name), tokens()
    told = model(source, target, source_lengths=LENGTHS, need_weights=True)
    encoded = model.encode(source, LENGTHS)
    state = model.start(encoded)
    for t in range(T):
        logits, state = model.step(target[:, t], state)
        assert_same(logits, told.logits[:, t])
        anew = model.decode(target[:, : t + 1], encoded, need_weights=True)
        assert_same(anew.logits[:, -1], logits)
        if told.weights is not None:
            assert_same(anew.weights[..., t, :], told.weights[..., t, :])


@every_model
def test_weights_are_of_the_source_and_sum_to_one(name):
    model, (source, target) = model_of(name), tokens()
    predicted = model(source, target, source_lengths=LENGTHS, need_weights=True)
    if name == "plain":
        assert predicted.weights is None
        return
    if isinstance(model, Transformer):
        shape = (B, len(model.decoder.layers), 2, T, TS)
    else:
        shape = (B, len(model.decoder.reads), T, TS)
    assert predicted.weights.shape == shape
    if name != "local-m":  # which may lie behind the end of a short source
        assert_same(predicted.weights.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    assert not predicted.weights[1, ..., 2:].any()
    assert model(source, target).weights is None


@every_model
def test_a_padded_batch_is_predicted_as_each_pair_alone(name):
    model, (source, target) = model_of(name), tokens()
    dirty = source.masked_fill(torch.arange(TS) >= LENGTHS[:, None], SOURCE - 1)
    target_lengths = torch.tensor([3, 5, 1])
    ends = torch.arange(T) >= target_lengths[:, None]
    target = target.masked_fill(ends, 0)
    expected = torch.randint(TARGET, (B, T)).masked_fill(ends, -100)

    def gradients(loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros(()) if one is None else one for one in found]

    def loss_of(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum")

    parameters = list(model.parameters())
    together = model(dirty, target, source_lengths=LENGTHS).logits
    alone = [0.0] * len(parameters)
    for b, (length, steps) in enumerate(
        zip(LENGTHS.tolist(), target_lengths.tolist(), strict=True)
    ):
        one = model(source[b : b + 1, :length], target[b : b + 1, :steps]).logits
        assert_same(together[b : b + 1, :steps], one)
        of_one = gradients(loss_of(one, expected[b : b + 1, :steps]))
        alone = [a + g for a, g in zip(alone, of_one, strict=True)]
    for ours, theirs in zip(gradients(loss_of(together, expected)), alone, strict=True):
        torch.testing.assert_close(ours, theirs, check_dtype=False)


@every_model
def test_later_tokens_do_not_change_earlier_predictions(name):
    model, (source, target) = model_of(name), tokens()
    other = target.clone()
    other[:, 3:] = 1
    assert_same(model(source, other).logits[:, :3], model(source, target).logits[:, :3])


@every_model
def test_an_empty_source_is_predicted_from(name):
    model, (source, target) = model_of(name), tokens()
    for lengths in ([0, 2, 0], [0, 0, 0]):
        logits = model(source, target, source_lengths=torch.tensor(lengths)).logits
        assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_reordered_states_go_on_as_their_sequences_would(name):
    model, (source, target) = model_of(name), tokens()
    state = model.start(model.encode(source, LENGTHS))
    for t in range(3):
        _, state = model.step(target[:, t], state)
    index = torch.tensor([2, 0, 0, 1])
    chosen, _ = model.step(target[index, 3], state.select(index))
    assert_same(chosen, model.step(target[:, 3], state)[0][index])


@every_model
def test_beginnings_of_one_target_change_places_without_their_memory(name):
    model, (source, target) = model_of(name), tokens()
    same = source[:1].expand(B, -1)
    state = model.start(model.encode(same))
    for t in range(3):
        _, state = model.step(target[:, t], state)
    index = torch.tensor([1, 1, 0])
    expected, _ = model.step(target[index, 3], state.select(index))
    light, _ = model.step(target[index, 3], state.select(index, memory=False))
    assert_same(light, expected)


@every_model
def test_copies_predict_alike(name):
    model, (source, target) = model_of(name), tokens()
    expected = model(source, target).logits
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = MODELS[name]().double().eval()
    other.load_state_dict(torch.load(file))
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(source, target).logits, expected)


@every_model
def test_autocast(name):
    model, (source, target) = model_of(name).float(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(source, target, source_lengths=LENGTHS).logits
        looped = model(source, target, source_lengths=LENGTHS, teacher_forcing=0.5).logits
    expected = model(source, target, source_lengths=LENGTHS).logits
    assert looped.isfinite().all()
    if name != "hard":
        # One sequence may meet a tie that rounding breaks (a predicted window, say)
        assert (logits - expected).abs().mean() < 0.1 * expected.abs().mean()
    logits.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# Teacher forcing


@every_model
def test_without_teacher_forcing_only_the_first_token_counts(name):
    model, (source, target) = model_of(name), tokens()
    logits = model(source, target, source_lengths=LENGTHS, teacher_forcing=0.0).logits
    other = target.clone()
    other[:, 1:] = 1
    assert_same(model(source, other, source_lengths=LENGTHS, teacher_forcing=0).logits, logits)
    own = torch.cat([target[:, :1], logits.argmax(-1)[:, :-1]], 1)
    assert_same(model(source, own, source_lengths=LENGTHS).logits, logits)


@pytest.mark.parametrize("name", ["bahdanau", "luong without input feeding", "rotary"])
def test_teacher_forcing_is_drawn_for_each_token(name, monkeypatch):
    model, (source, target) = model_of(name), tokens()
    drawn = torch.tensor([[0.1, 0.9, 0.29], [0.31, 0.2, 0.8], [0.0, 0.99, 0.5], [0.7, 0.1, 0.3]])
    numbers = iter(drawn)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(numbers))
    logits = model(source, target, teacher_forcing=0.3).logits
    true = torch.cat([torch.ones(B, 1, dtype=torch.bool), drawn.T < 0.3], 1)
    guesses = torch.cat([target[:, :1], logits.argmax(-1)[:, :-1]], 1)
    assert_same(model(source, torch.where(true, target, guesses)).logits, logits)


def test_how_often_a_guess_replaces_a_token():
    model = recurrent(lambda: plain(E, D, D))
    seen = []
    step = model.step
    model.step = lambda token, state: (seen.append(token), step(token, state))[1]
    target = torch.full((2000, 2), 1)
    # The guess is never the token 1
    nn.init.constant_(model.output.bias, 0.0)
    model.output.bias.data[1] = -1e9
    with torch.no_grad():
        model(torch.randint(4, SOURCE, (2000, 2)), target, teacher_forcing=0.7)
    assert abs((seen[1] == 1).double().mean() - 0.7) < 0.04


@every_model
def test_a_target_without_tokens(name):
    model, (source, target) = model_of(name), tokens()
    for ratio in (1.0, 0.5):
        assert model(source, target[:, :0], teacher_forcing=ratio).logits.shape == (B, 0, TARGET)
    nobody = model(source[:0], target[:0], teacher_forcing=1.0)
    assert nobody.logits.shape == (0, T, TARGET)


# The recurrent model


@pytest.mark.parametrize("name", ["bahdanau", "luong", "luong without input feeding", "grammar"])
def test_feed_previous_decodes_its_own_guesses(name):
    model, (source, target) = model_of(name), tokens()
    first = target[:, 0]
    fed = model.feed_previous(source, first, T, source_lengths=LENGTHS).logits
    assert_same(fed, model(source, target, source_lengths=LENGTHS, teacher_forcing=0).logits)
    assert_same(
        model.feed_previous(
            source, first, T, source_lengths=LENGTHS, update_embedding_for_previous=False
        ).logits,
        fed,
    )
    assert model.feed_previous(source, first, 0).logits.shape == (B, 0, TARGET)


@pytest.mark.parametrize("update", [True, False])
def test_update_embedding_for_previous(update):
    model, (source, _) = model_of("grammar"), tokens()
    first = torch.full((B,), 2)
    logits = model.feed_previous(source, first, T, update_embedding_for_previous=update).logits
    guessed = set(logits.argmax(-1)[:, :-1].flatten().tolist())
    assert guessed - {2}
    logits.sin().sum().backward()
    moved = model.target_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert set(moved) == ({2} | guessed if update else {2})


def test_hard_choices_of_a_model_in_training():
    model, (source, target) = model_of("hard").train(), tokens()
    predicted = model(source, target, source_lengths=LENGTHS)
    assert predicted.log_prob.shape == predicted.entropy.shape == (B, 1, T)
    assert (predicted.log_prob <= 0).all() and (predicted.entropy >= 0).all()
    fed = model.feed_previous(source, target[:, 0], 4)
    assert fed.log_prob.shape == (B, 1, 4)
    assert model.eval()(source, target).log_prob is None


def test_tied_output():
    decoder = luong(E, D, D, output_size=E)
    encoder = RecurrentEncoder(E, H, bidirectional=True)
    model = Seq2Seq(encoder, decoder, source_size=SOURCE, target_size=TARGET, tie_output=True)
    assert model.output.weight is model.target_embedding.weight
    twin = copy.deepcopy(model)
    assert twin.output.weight is twin.target_embedding.weight
    untied = Seq2Seq(encoder, decoder, source_size=SOURCE, target_size=TARGET)
    count = [sum(p.numel() for p in one.parameters()) for one in (model, untied)]
    assert count[1] - count[0] == TARGET * E


def test_dropout_of_the_embeddings_in_training_alone():
    source, target = tokens()
    encoder = RecurrentEncoder(E, H, bidirectional=True)
    decoder = luong(E, D, D)
    model = Seq2Seq(encoder, decoder, source_size=SOURCE, target_size=TARGET, dropout=0.5)
    assert not torch.allclose(model(source, target).logits, model(source, target).logits)
    model.eval()
    torch.testing.assert_close(model(source, target).logits, model(source, target).logits)


# The Transformer


@pytest.mark.parametrize("tie, shared", [("none", 0), ("output", 1), ("all", 2)])
def test_tied_embeddings(tie, shared):
    model = Transformer(TARGET, TARGET, size=8, heads=2, layers=1, tie=tie)
    one = model.target_embedding.weight
    assert (model.output.weight is one) == (tie != "none")
    assert (model.source_embedding.weight is one) == (tie == "all")
    weights = {id(m.weight) for m in (model.output, model.source_embedding, model.target_embedding)}
    assert len(weights) == 3 - shared
    twin = copy.deepcopy(model)
    assert (twin.output.weight is twin.target_embedding.weight) == (tie != "none")


def test_the_transformer_is_torchs():
    """With torch's parameters and the same input, its stacks give what nn.Transformer gives."""
    model = transformer("sinusoidal", norm_first=False, tie="none", dropout=0.0).double().eval()
    theirs = nn.Transformer(8, 2, 2, 2, 32, 0.0, batch_first=True, norm_first=False).double().eval()
    theirs.encoder.norm = theirs.decoder.norm = nn.Identity()  # which the paper's lacks

    def copied(ours: nn.Module, other: nn.MultiheadAttention) -> None:
        parts = zip((ours.query, ours.key, ours.value), other.in_proj_weight.chunk(3), strict=True)
        biases = other.in_proj_bias.chunk(3)
        for (linear, weight), bias in zip(parts, biases, strict=True):
            linear.load_state_dict({"weight": weight, "bias": bias})
        ours.output.load_state_dict(other.out_proj.state_dict())

    for ours, other in zip(model.encoder.layers, theirs.encoder.layers, strict=True):
        copied(ours.attention, other.self_attn)
        ours.attention_norm.load_state_dict(other.norm1.state_dict())
        ours.feed_forward_norm.load_state_dict(other.norm2.state_dict())
        ours.feed_forward.hidden.load_state_dict(other.linear1.state_dict())
        ours.feed_forward.output.load_state_dict(other.linear2.state_dict())
    for ours, other in zip(model.decoder.layers, theirs.decoder.layers, strict=True):
        copied(ours.attention, other.self_attn)
        copied(ours.memory_attention, other.multihead_attn)
        ours.attention_norm.load_state_dict(other.norm1.state_dict())
        ours.memory_norm.load_state_dict(other.norm2.state_dict())
        ours.feed_forward_norm.load_state_dict(other.norm3.state_dict())
        ours.feed_forward.hidden.load_state_dict(other.linear1.state_dict())
        ours.feed_forward.output.load_state_dict(other.linear2.state_dict())
    source, target = tokens()
    where = torch.arange(TS)[:, None] / 10000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    positions = torch.stack([where.sin(), where.cos()], -1).flatten(-2)
    x = model.source_embedding(source) * 8**0.5 + positions
    y = model.target_embedding(target) * 8**0.5 + positions[:T]
    padding = torch.arange(TS) >= LENGTHS[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    expected = theirs(
        x, y, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding
    )
    logits = model(source, target, source_lengths=LENGTHS).logits
    assert_same(logits, model.output(expected))


def test_encoder_and_decoder_of_different_depths():
    model = transformer("alibi", layers=(3, 1))
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (3, 1)


def test_sources_and_targets_longer_than_learned_positions():
    model, (source, _) = model_of("learned"), tokens()
    longer = torch.randint(4, TARGET, (B, 10))
    with pytest.raises(ValueError, match=r"10 time steps .* learned from 0 to 8: shorten"):
        model(longer, longer)
    state = model.start(model.encode(source))
    for _ in range(9):
        _, state = model.step(longer[:, 0], state)
    with pytest.raises(ValueError, match="offset is 9; positions were learned from 0 to 8"):
        model.step(longer[:, 0], state)
    # A search stops there: the begin symbol and eight tokens
    model.output.bias.data[3] = -1e9
    for found in model.generate(source):
        assert len(found[0].tokens) == 8 and not found[0].finished


# How often things are computed


@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_projects_the_keys_once(beam, monkeypatch):
    calls = []
    original = Attention._project_keys
    monkeypatch.setattr(
        Attention, "_project_keys", lambda self, keys: (calls.append(1), original(self, keys))[1]
    )
    source, _ = tokens()
    model_of("grammar").generate(source, beam=beam, max_length=4)
    assert len(calls) == 2  # reads


@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_projects_the_memory_once_and_each_token_once(beam):
    model, (source, _) = model_of("rotary"), tokens()
    model.output.bias.data[3] = -1e9  # so that no target ends
    widths: dict[str, list[int]] = {"itself": [], "memory": []}
    layer = model.decoder.layers[0]
    for name, attention in (("itself", layer.attention), ("memory", layer.memory_attention)):
        attention.key.register_forward_hook(
            lambda _, inputs, __, name=name: widths[name].append(inputs[0].shape[1])
        )
    model.generate(source, beam=beam, max_length=4)
    assert widths == {"itself": [1] * 5, "memory": [TS]}


# torch.compile


def assert_one_graph(model: EncoderDecoder, **options) -> None:
    source, target = tokens()
    expected = model(source, target, **options).logits
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_same(compiled(source, target, **options).logits, expected)


def test_one_graph_of_a_recurrent_model():
    """Without lengths: those of a recurrent encoder are packed, which torch cannot compile."""
    assert_one_graph(model_of("luong without input feeding"))


def test_one_graph_of_a_transformer():
    model = transformer("t5", layers=1).double().eval()
    assert_one_graph(model, source_lengths=LENGTHS)


# Bad input


@pytest.mark.parametrize("name", ["grammar", "rotary"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"source": torch.tensor([[4, SOURCE]])}, "source has the token 11; expected 0 to 10"),
        ({"target": torch.tensor([[2, -1]])}, "target has the token -1; expected 0 to 8"),
        ({"source": torch.tensor([4, 5])}, r"source has shape \[2\] and dtype torch.int64"),
        ({"target": torch.ones(1, 2)}, "target has .* torch.float32; expected int64"),
        ({"target": torch.ones(2, 2).long()}, "source has batch size 1, but target 2"),
        ({"teacher_forcing": 1.5}, "teacher_forcing is 1.5; a probability lies between 0 and 1"),
        ({"teacher_forcing": -0.1}, "teacher_forcing is -0.1; a probability"),
        (
            {"teacher_forcing": 0.5, "need_weights": True},
            "need_weights with teacher_forcing=0.5.*use teacher_forcing=1",
        ),
        ({"source_lengths": torch.tensor([3])}, "lengths has the entry 3; expected 0 to 2"),
        ({"source_lengths": torch.tensor([1, 1])}, r"lengths has shape \[2\]"),
    ],
)
def test_bad_input(name, change, message):
    given = {"source": torch.tensor([[4, 5]]), "target": torch.tensor([[2, 4]])}
    with pytest.raises(ValueError, match=message):
        model_of(name)(**given | change)


@pytest.mark.parametrize(
    "first, steps, message",
    [
        (torch.tensor([2, 2]), 3, "first has batch size 2, but source 3"),
        (torch.tensor([2, 2, 9]), 3, "first has the token 9; expected 0 to 8"),
        (torch.tensor([[2], [2], [2]]), 3, r"first has shape \[3, 1\].*expected int64 \[B\]"),
        (torch.ones(3), 3, "first has .*torch.float32; expected int64"),
        (torch.tensor([2, 2, 2]), -1, "steps is -1; expected 0 or more"),
    ],
)
def test_bad_input_of_feed_previous(first, steps, message):
    source, _ = tokens()
    with pytest.raises(ValueError, match=message):
        model_of("grammar").feed_previous(source, first, steps)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source_size": 0}, "source_size is 0; expected at least 1"),
        ({"target_size": 0}, "target_size is 0; expected at least 1"),
        ({"eos": 9}, "eos is 9; expected a token of the target, 0 to 8"),
        ({"bos": -1}, "bos is -1; expected a token of the target"),
        ({"pad": 12}, "pad is 12; expected a token of the target"),
        ({"tie_output": True}, "tie_output needs .* output_size, 8, is its input_size, 6"),
    ],
)
def test_bad_settings(options, message):
    sizes = {"source_size": SOURCE, "target_size": TARGET}
    with pytest.raises(ValueError, match=message):
        Seq2Seq(RecurrentEncoder(E, D), luong(E, D, D), **sizes | options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source_size": 0}, "source_size is 0; expected at least 1"),
        ({"eos": 9}, "eos is 9; expected a token of the target, 0 to 8"),
        ({"tie": "input"}, "tie is 'input'; expected 'none', 'output' or 'all'"),
        ({"tie": "all"}, "tie is 'all', but the vocabularies have 11 and 9 tokens: use one"),
        ({"positions": "absolute"}, "positions is 'absolute'; known ones are sinusoidal, learned"),
        ({"positions": "learned"}, "'learned' need max_length; got None"),
        ({"max_length": 9}, "'sinusoidal' have no use for max_length; got 9"),
        ({"heads": 0}, "heads is 0; expected at least 1"),
        ({"heads": 0, "positions": "rotary"}, "heads is 0; expected at least 1"),
        ({"heads": 3}, "heads is 3, which does not divide size, 8"),
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"layers": (1, 2, 3)}, r"layers is \(1, 2, 3\); expected one number, or two"),
        ({"dropout": 2}, "dropout.* between 0 and 1"),
    ],
)
def test_bad_settings_of_the_transformer(options, message):
    given = {"source_size": SOURCE, "target_size": TARGET, "size": 8, "heads": 2, "layers": 1}
    with pytest.raises(ValueError, match=message):
        Transformer(**given | options)


def test_a_decoder_of_its_own():
    """An EncoderDecoder needs an encoder and a decoder that fit, and nothing of their making."""
    attention = LuongAttention("dot", query_size=D)
    sizes = {"input_size": E, "state_size": D, "memory_size": D}
    decoder = AttentionDecoder(attention, layers=2, initial="learned", **sizes)
    encoder = RecurrentEncoder(E, H, "lstm", bidirectional=True, layers=3)
    model = Seq2Seq(encoder, decoder, source_size=SOURCE, target_size=TARGET)
    source, target = tokens()
    assert model(source, target, source_lengths=LENGTHS).logits.shape == (B, T, TARGET)
    assert isinstance(transformer("t5").decoder, TransformerDecoder)
