"""OpenNMT-py's models and search, in the environment where OpenNMT-py is.

This library need not be there. An environment for it: torch, then `pip install --no-deps
OpenNMT-py==3.5.1` and what it imports: `pip install "numpy<2" pyonmttok configargparse pyyaml six
sacrebleu spacy pyahocorasick fasttext-wheel rapidfuzz flask waitress`. (It asks for torch below
2.3; what is measured here runs with newer ones.)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._worker import Contender, fill, of_translation, translators

# What its parameters are called, and what they are called here
NAMES = {
    "encoder.embeddings.make_embedding.emb_luts.0": "source_embedding",
    "decoder.embeddings.make_embedding.emb_luts.0": "target_embedding",
    "generator": "output",
    "encoder.rnn": "encoder.cell",
    "decoder.rnn.layers.0": "decoder.cell",
    "decoder.attn.linear_out.0": "decoder.combine",  # with a tanh behind it
    "decoder.attn.linear_out": "decoder.combine",
    "decoder.attn.linear_in.": "decoder.reads.0.",
    "decoder.attn.linear_query.": "decoder.reads.0.query_",
    "decoder.attn.linear_context.": "decoder.reads.0.key_",
    "decoder.attn.v.weight": "decoder.reads.0.vector",
    "encoder.transformer": "encoder.layers",
    "decoder.transformer_layers": "decoder.layers",
    "self_attn": "attention",
    "context_attn": "memory_attention",
    "linear_query": "query",
    "linear_keys": "key",
    "linear_values": "value",
    "final_linear": "output",
    "w_1": "hidden",
    "w_2": "output",
    "layer_norm_1": "attention_norm",
    "layer_norm_2": "memory_norm",
    "feed_forward.layer_norm": "feed_forward_norm",
    "encoder.layer_norm": "encoder.norm",
    "decoder.layer_norm": "decoder.norm",
    ".layer_norm": ".attention_norm",
}
ATTENTIONS = {"luong": "general", "additive": "mlp"}


def translation(inputs: str) -> Contender:
    """Its models, with the inputs and parameters that `benchmarks._translators` wrote."""
    return translators("onmt", of_kind, inputs)


def of_kind(kind: str, given: dict[str, Any]) -> Contender:
    """One of them."""
    names = "inputters.inputter", "model_builder", "opts", "utils.parse"
    inputters, builder, opts, parse = (import_module(f"onmt.{name}") for name in names)
    losses, translate = (import_module(f"onmt.{name}") for name in ("utils.loss", "translate"))
    sizes, parameters = given["sizes"], given["parameters"][kind]
    symbols = ["<unk>", "<blank>", "<s>", "</s>"]
    sides = {"src": sizes["source_size"], "tgt": sizes["target_size"]}
    words = {side: symbols + [str(i) for i in range(4, size)] for side, size in sides.items()}
    vocabularies = inputters.dict_to_vocabs({**words, "data_task": "seq2seq"})
    parser = parse.ArgumentParser()
    opts.train_opts(parser)
    options, _ = parser.parse_known_args(architecture(kind, sizes))
    parser.update_model_opts(options)
    parser.validate_model_opts(options)
    model = builder.build_base_model(options, vocabularies)

    if kind != "transformer":
        parameters = {
            name.removesuffix("_l0") if name.startswith("decoder.cell") else name: x
            for name, x in parameters.items()
        }
    if kind == "luong":
        parameters["decoder.reads.0.weight"] = parameters["decoder.reads.0.weight"].T
    if kind == "additive":
        # Its state of the other attentions is tanh of this map, as ours and Joey NMT's is of all
        model.decoder.attn.linear_out = nn.Sequential(model.decoder.attn.linear_out, nn.Tanh())
        parameters["decoder.combine.bias"] = torch.zeros(sizes["state"])
        parameters["decoder.reads.0.query_bias"] = torch.zeros(sizes["state"])
    fill(model, parameters, NAMES)

    criterion = nn.CrossEntropyLoss(ignore_index=1, reduction="sum")
    computed = losses.LossCompute(criterion, model.generator)
    learn = {
        "src": given["source"][..., None],
        "srclen": given["lengths"],
        "tgt": given["target"][..., None],
    }
    tokens = int((given["target"][:, 1:] != 1).sum())
    translator = translate.Translator(
        model, vocabularies, max_length=given["longest"], max_length_ratio=0,
        beam_size=given["beam"], report_score=False,
        global_scorer=translate.GNMTGlobalScorer(0.0, 0.0, "none", "none"),
    )  # fmt: skip
    say = {"src": given["sentences"][..., None], "srclen": given["sentence_lengths"]}

    def loss() -> Tensor:
        output, attentions = model(learn["src"], learn["tgt"], learn["srclen"])
        total, _ = computed(learn, output, attentions)
        mean: Tensor = total / tokens
        return mean

    def find() -> Tensor:
        found: Any = translator.translate_batch(say, attn_debug=False)
        return torch.tensor([float(best[0]) for best in found["scores"]])

    return of_translation(model, loss, find, model.encoder.embeddings.word_lut.weight)


def architecture(kind: str, sizes: dict[str, int]) -> list[str]:
    """Its options of a model; the files that they must name are never read."""
    given: dict[str, Any] = {"data": "none", "src_vocab": "none", "word_vec_size": sizes["width"]}
    given |= {"dropout": 0.0, "attention_dropout": 0.0}
    if kind == "transformer":
        given |= {
            "encoder_type": "transformer",
            "decoder_type": "transformer",
            "hidden_size": sizes["width"],
            "layers": sizes["layers"],
            "heads": sizes["heads"],
            "transformer_ff": sizes["feed_forward"],
        }
        flags = ["position_encoding", "add_qkvbias", "add_ffnbias", "share_decoder_embeddings"]
    else:
        given |= {
            "encoder_type": "brnn",
            "decoder_type": "rnn",
            "rnn_type": "GRU",
            "hidden_size": sizes["state"],
            "layers": 1,
            "input_feed": 1,
            "global_attention": ATTENTIONS[kind],
        }
        flags = []
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return words + [f"--{flag}" for flag in flags]
