"""Translation models beside Joey NMT's and OpenNMT-py's: a training step, and beam search.

All have the same parameters, batches and lengths, and must first compute the same: the loss, the
gradient of the source's embedding, and the log-probabilities of what the search finds.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._processes import Task, python_with, started
from benchmarks._report import Cell, Report, Table
from benchmarks._worker import Contender, in_one_process, of_translation
from datasets import DataFileError, bucketed, in_order
from examples._translation import Data
from sequence_attn import BahdanauAttention
from sequence_attn.seq2seq import RecurrentEncoder, Seq2Seq, Transformer, generate, luong

PAD, BOS, EOS = 1, 2, 3  # as the peers number them; 0 is the unknown word
KINDS = {
    "luong": "Luong, general",
    "additive": "Bahdanau's score",
    "transformer": "Transformer",
}
PEERS = {  # what must be there, the option that says where, and what makes the contender
    "Joey NMT": ("joeynmt.model", "--joeynmt-python", "benchmarks._joeynmt:translation"),
    "OpenNMT-py": ("onmt.translate", "--opennmt-python", "benchmarks._opennmt:translation"),
}
Model = Seq2Seq | Transformer


def measure_peers(report: Report, arguments: Namespace) -> None:
    """The table, with those peers that there are."""
    title = "Translation models beside Joey NMT's and OpenNMT-py's"
    try:
        given = inputs(arguments.tiny)
    except DataFileError as error:
        print(f"{title}: {error}", file=sys.stderr)  # names folders of this machine
        report.add(Table(title, [], [], "Skipped, for want of the data: the files of Multi30k are "
                         "neither in the folder GAT_DATA nor to be downloaded."))  # fmt: skip
        return
    pythons = {
        name: python_with(module, name, option, getattr(arguments, option[2:].replace("-", "_")))
        for name, (module, option, _) in PEERS.items()
    }
    left_out = "".join(
        f" {name} is not among them: {PEERS[name][1]} names an environment that has it."
        for name, python in pythons.items() if python is None
    )  # fmt: skip
    tokens = int((given["target"][:, 1:] != PAD).sum())
    sentences, beam = len(given["sentences"]), given["beam"]
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "inputs.pt")
        torch.save(given, path)
        tasks = {"ours": Task(f"{__name__}:translation", {"inputs": path})}
        for name, python in pythons.items():
            if python is not None:
                tasks[name] = Task(PEERS[name][2], {"inputs": path}, python)
        with started(tasks, needed=tasks) as group:
            group.assert_agree()
            facts = group.ask("about")
            for kind, title_of in KINDS.items():
                step, search = (
                    group.time([run], rounds=2 if arguments.tiny else rounds, warm_up=1)[run]
                    for run, rounds in ((f"{kind}, step", 9), (f"{kind}, search", 5))
                )
                for name in tasks:
                    rows.append([
                        title_of, name, int(facts[name][f"{kind}, parameters"]) / 1e6,
                        step.milliseconds(name), tokens / step.milliseconds(name) * 1e3,
                        step.ratio(name, "ours"), search.milliseconds(name),
                        sentences / search.milliseconds(name) * 1e3, search.ratio(name, "ours"),
                    ])  # fmt: skip
    versions = "".join(f" {name} {of['version']}." for name, of in facts.items() if name in PEERS)
    report.add(
        Table(
            title,
            [
                "model", "", "million parameters", "step, ms", "target tokens/s", "times ours",
                f"beam {beam}, ms", "sentences/s", "times ours",
            ],
            rows,
            f"{described(given)}{versions}{left_out}",
        )
    )  # fmt: skip


def described(given: dict[str, Any]) -> str:
    """What is measured, and what remains unequal."""
    sizes, target = given["sizes"], given["target"]
    tokens, layers = int((target[:, 1:] != PAD).sum()), sizes["layers"]
    return (
        f"float32, no dropout; vocabularies of {sizes['source_size']} and {sizes['target_size']} "
        f"words, embeddings {sizes['width']} wide. GRUs, one each way in the encoder, with a state "
        f"of {sizes['state']}, and input feeding; a Transformer of {layers} + {layers} layers, "
        f"{sizes['heads']} heads and {sizes['feed_forward']} hidden units, norms first, its output "
        "matrix the target's embedding. A step is forward and backward, over a batch of median "
        f"length, {len(target)} pairs with {tokens} target tokens, without the optimiser's. The "
        "search writes "
        f"{given['longest']} tokens for each of {len(given['sentences'])} sentences at once; the "
        "end symbol is too improbable to come before. All were shown to compute the same loss, "
        "gradient of the source's embedding, and log-probabilities of what is found. Not equal: "
        "each has the loss that its own trainer calls, and the peers' count the right guesses; "
        "ours searches one step more, in which only the end may follow, and adds up in float64; "
        "Joey NMT's Transformer keeps nothing from one step of the search to the next; the output "
        "of Joey NMT has no bias, the attentional state of ours none, and biases that not all have "
        "are zero. With Bahdanau's score, too, all ask with the new state, as the peers do (the "
        "paper's order, `bahdanau`, is in none of them), and OpenNMT-py's attentional state was "
        "given the tanh that it has with the other scores."
    )


def inputs(tiny: bool) -> dict[str, Any]:
    """Batches of Multi30k, or of dates, numbered as the peers number words; and parameters.

    The words below 4, the end symbol among them, get logits of 0, and the others so different ones
    that no beam is that narrow.
    """
    torch.manual_seed(0)
    corpus = Data(("dates",) if tiny else ("multi30k",)).corpus()
    sizes = {
        "source_size": len(corpus.source), "target_size": len(corpus.target),
        **({"width": 16, "state": 16, "layers": 1, "heads": 2, "feed_forward": 16} if tiny else
           {"width": 256, "state": 512, "layers": 3, "heads": 8, "feed_forward": 512}),
    }  # fmt: skip
    batches = bucketed(corpus.encoded("train"), batch_size=8 if tiny else 128, seed=0, epoch=0)
    learn = sorted(batches, key=lambda batch: batch.target.shape[1])[len(batches) // 2]
    say = in_order(corpus.encoded("test"), batch_size=4 if tiny else 64)[0]
    parameters = {}
    for kind in KINDS:
        model = build(kind, sizes)
        with torch.no_grad():
            if kind != "transformer":
                model.output.weight *= 8
            model.output.weight[:4] = 0
            model.output.bias.zero_()
        parameters[kind] = {name: x.detach() for name, x in model.named_parameters()}
    found: dict[str, Any] = {
        "sizes": sizes, "parameters": parameters, "beam": 5, "longest": 5 if tiny else 20,
    }  # fmt: skip
    # Joey NMT packs its sources, and wants the longest first
    for names, batch in ((("source", "lengths"), learn), (("sentences", "sentence_lengths"), say)):
        order = batch.source_lengths.argsort(descending=True, stable=True)
        found |= dict(zip(names, (_renumbered(batch.source), batch.source_lengths), strict=True))
        found |= {name: found[name][order] for name in names}
        if batch is learn:
            found["target"] = _renumbered(batch.target)[order]
    return found


def _renumbered(words: Tensor) -> Tensor:
    """With padding 1 and the unknown word 0, which are the other way round here."""
    return words.where(words > 1, 1 - words)


def build(kind: str, sizes: dict[str, int]) -> Model:
    """Ours."""
    symbols: dict[str, Any] = {"pad": PAD, "bos": BOS, "eos": EOS}
    words: dict[str, Any] = {side: sizes[side] for side in ("source_size", "target_size")}
    width, state = sizes["width"], sizes["state"]
    if kind == "transformer":
        model = Transformer(
            **words, **symbols, size=width, heads=sizes["heads"], layers=sizes["layers"],
            feed_forward_size=sizes["feed_forward"], dropout=0.0,
        )  # fmt: skip
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6  # as the peers have it
        return model
    encoder = RecurrentEncoder(width, state // 2, bidirectional=True)
    attention: Any = "general" if kind == "luong" else BahdanauAttention(state)
    return Seq2Seq(encoder, luong(width, state, state, attention=attention), **words, **symbols)


def translation(inputs: str) -> Contender:
    """Ours, as a contender."""
    given = torch.load(inputs, weights_only=True)
    return in_one_process({kind: of_kind(kind, given) for kind in given["parameters"]})


def of_kind(kind: str, given: dict[str, Any]) -> Contender:
    """One of our models."""
    model = build(kind, given["sizes"])
    for name, parameter in model.named_parameters():
        parameter.data.copy_(given["parameters"][kind][name])
    target = given["target"]

    def loss() -> Tensor:
        logits = model(given["source"], target[:, :-1], source_lengths=given["lengths"]).logits
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)

    def find() -> Tensor:
        found = generate(
            model, given["sentences"], given["sentence_lengths"], beam=given["beam"], alpha=0.0,
            max_length=given["longest"],
        )  # fmt: skip
        return torch.tensor([best.log_prob for best, *_ in found])

    embedding: Any = model.source_embedding
    return of_translation(model, loss, find, embedding.weight)
