"""Joey NMT's models and search, in the environment where Joey NMT is: this library need not be.

An environment for it: torch, then `pip install --no-deps joeynmt==2.3.0` and what it imports: `pip
install numpy importlib_metadata packaging tensorboard matplotlib sentencepiece subword_nmt pyyaml`.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks._worker import Contender, fill, of_translation, translators

# What its parameters are called, and what they are called here
NAMES = {
    "src_embed.lut": "source_embedding",
    "trg_embed.lut": "target_embedding",
    "decoder.output_layer": "output",
    ".rnn": ".cell",
    "decoder.att_vector_layer": "decoder.combine",
    "attention.query_layer.": "reads.0.query_",
    "attention.key_layer.": "reads.0.key_",
    "attention.energy_layer.weight": "reads.0.vector",
    "src_src_att": "attention",
    "trg_trg_att": "attention",
    "src_trg_att": "memory_attention",
    "q_layer": "query",
    "k_layer": "key",
    "v_layer": "value",
    "output_layer": "output",
    "pwff_layer.0": "hidden",
    "pwff_layer.3": "output",
    "x_layer_norm": "attention_norm",
    "dec_layer_norm": "memory_norm",
    "feed_forward.layer_norm": "feed_forward_norm",
    "encoder.layer_norm": "encoder.norm",
    "decoder.layer_norm": "decoder.norm",
    ".layer_norm": ".attention_norm",
}
ATTENTIONS = {"luong": "luong", "additive": "bahdanau"}


def translation(inputs: str) -> Contender:
    """Its models, with the inputs and parameters that `benchmarks._translators` wrote."""
    return translators("joeynmt", of_kind, inputs)


def of_kind(kind: str, given: dict[str, Any]) -> Contender:
    """One of them."""
    names = ("batch", "model", "search", "vocabulary")
    batches, models, search, vocabularies = (import_module(f"joeynmt.{name}") for name in names)
    sizes, parameters = given["sizes"], given["parameters"][kind]
    symbols = SimpleNamespace(
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None,
        unk_id=0, pad_id=1, bos_id=2, eos_id=3, sep_id=None, lang_tags=[],
    )  # fmt: skip
    vocabulary = [
        vocabularies.Vocabulary([str(i) for i in range(4, sizes[side])], symbols)
        for side in ("source_size", "target_size")
    ]
    model = models.build_model(architecture(kind, sizes), *vocabulary)
    model.loss_function = ("crossentropy", 0.0)

    if kind != "transformer":
        context, state = parameters["decoder.combine.weight"].chunk(2, 1)
        parameters["decoder.combine.weight"] = torch.cat([state, context], 1)
        parameters["decoder.combine.bias"] = torch.zeros(sizes["state"])
        if kind == "luong":
            parameters["decoder.reads.0.key_weight"] = parameters.pop("decoder.reads.0.weight")
    del parameters["output.bias"]  # zero, and it has none
    fill(model, parameters, NAMES)

    def batch(source: Tensor, lengths: Tensor, target: Tensor | None) -> Any:
        return batches.Batch(
            source, lengths, None, target, None, torch.arange(len(source)), torch.device("cpu"),
            pad_index=1, eos_index=3, is_train=target is not None,
        )  # fmt: skip

    learn = batch(given["source"], given["lengths"], given["target"])
    say = batch(given["sentences"], given["sentence_lengths"], None)

    def loss() -> Tensor:
        total, *_ = model(return_type="loss", **vars(learn))
        mean: Tensor = learn.normalize(total, "tokens")
        return mean

    def find() -> Tensor:
        _, log_probs, _ = search.search(
            model, say, given["longest"], given["beam"], beam_alpha=-1, return_prob="hyp"
        )
        return torch.from_numpy(log_probs).flatten()

    return of_translation(model, loss, find, model.src_embed.lut.weight)


def architecture(kind: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Its configuration of a model."""
    both: dict[str, Any] = {
        "type": "recurrent",
        "rnn_type": "gru",
        "embeddings": {"embedding_dim": sizes["width"]},
    }
    if kind == "transformer":
        both = {
            "type": "transformer",
            "embeddings": {"embedding_dim": sizes["width"], "scale": True},
            "num_layers": sizes["layers"],
            "num_heads": sizes["heads"],
            "hidden_size": sizes["width"],
            "ff_size": sizes["feed_forward"],
            "dropout": 0.0,
            "layer_norm": "pre",
        }
        return {"tied_softmax": True, "encoder": both, "decoder": both}
    decoder = {
        "hidden_size": sizes["state"],
        "attention": ATTENTIONS[kind],
        "init_hidden": "last",
    }
    return {"encoder": {**both, "hidden_size": sizes["state"] // 2}, "decoder": both | decoder}
