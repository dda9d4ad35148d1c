"""The models that `examples.node_classification` trains, and how each is set up."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from examples._files import UserError
from gat import AGNN, GAT, GATv2, GraphAttention, GraphTransformer

Model = GAT | GATv2 | GraphTransformer | GraphAttention | AGNN
MODELS: dict[str, type[Model]] = {
    "gat": GAT, "gatv2": GATv2, "transformer": GraphTransformer, "agnn": AGNN,
    "attention": GraphAttention,
}  # fmt: skip
NAMES = {"gat": "GAT", "gatv2": "GATv2", "transformer": "GraphTransformer", "agnn": "AGNN"}
# Options that a model of another kind has no use for.
ATTENTION = ("heads", "out_heads", "value_dropout", "residual", "norm", "feed_forward", "jumping")
PARTS = ("score", "normalizer")
CHOICES = ("gat", "gatv2", "transformer", "agnn")
SCORES = ("additive", "concat", "cosine", "dot", "general", "scaled_dot", "separable")
NORMALIZERS = ("softmax", "sparsemax", "entmax", "hard", "identity")
# A model as a GraphAttention, in which its score and its normaliser can be replaced.
AS_ATTENTION: dict[str, dict[str, Any]] = {
    "gat": {"score": "separable", "share_weights": True, "value_projection": False},
    "gatv2": {"score": "additive", "activation": "leaky_relu", "value_projection": False},
    "transformer": {"score": "scaled_dot", "add_self_loops": False},
}


def kind_of(args: argparse.Namespace) -> str:
    """The model that the options name: one with another score or normaliser is an "attention"."""
    return "attention" if args.score or args.normalizer else str(args.model)


def name_of(args: argparse.Namespace) -> str:
    """What to call it in a table."""
    changed = [part for part in (args.score, args.normalizer) if part]
    return NAMES[args.model] + (f" with {', '.join(changed)}" if changed else "")


def build(kind: str, arguments: dict[str, Any]) -> Model:
    """A model of that kind, from its arguments.

    >>> build("agnn", {"in_channels": 4, "hidden_channels": 8, "num_layers": 2}).config["dropout"]
    0.0
    """
    return MODELS[kind](**arguments)


def arguments_of(
    args: argparse.Namespace, in_channels: int, out_channels: int, edge_dim: int | None
) -> dict[str, Any]:
    """The arguments of the model that the options name.

    Raises:
        UserError: edges have features, and the model has no use for them.
    """
    arguments: dict[str, Any] = {
        "in_channels": in_channels,
        "hidden_channels": args.hidden,
        "num_layers": args.layers,
        "out_channels": out_channels,
        "dropout": args.dropout,
    }
    if args.model != "agnn":
        node_norm = {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}
        residual = "root_weight" if kind_of(args) == "transformer" else "residual"
        arguments |= {
            "hidden_channels": args.hidden * args.heads,
            "act": "elu",
            **(node_norm if args.norm else {"norm": None}),
            "jk": args.jumping,
            "input_dropout": args.dropout,
            residual: args.residual,
        }
        arguments |= {name: getattr(args, name) for name in ("heads", "out_heads", "value_dropout")}
        arguments["feed_forward"] = args.feed_forward
    if kind_of(args) == "attention":
        arguments |= AS_ATTENTION[args.model]
        arguments |= {part: getattr(args, part) for part in PARTS if getattr(args, part)}
        if arguments["score"] not in ("additive", "concat", "separable"):
            arguments.pop("activation", None)
    if args.model != "agnn":
        return arguments | {"edge_dim": edge_dim}
    if edge_dim is not None:
        raise UserError(
            f"the edges have {edge_dim} numbers each, of which --model agnn makes no use: choose"
            " another model, or leave out these columns"
        )
    return arguments


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError if an option is given that the model does not have."""
    if args.model == "agnn":
        for option in (*ATTENTION, *PARTS):
            if getattr(args, option) is not None:
                raise UserError(
                    f"--{option.replace('_', '-')} has no meaning for --model agnn; leave it out"
                )


def load_model(folder: Path) -> tuple[Model, dict[str, Any]]:
    """Rebuilds the model that `save_model` wrote, ready to predict, and returns its config too.

    Raises:
        UserError: a file is missing or damaged, or weights and config do not belong together.
    """
    paths = folder / "config.json", folder / "model.safetensors"
    try:
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        digest = hashlib.sha256(paths[1].read_bytes()).hexdigest()
        if digest != config["weights_sha256"]:
            raise UserError(
                f"{paths[1]} is damaged or belongs to another model: its sha256 is not the one in"
                " config.json; train again, or copy both files together"
            )
        model = build(config["kind"], config["model"])
        if len(config["class_names"]) != model.config["out_channels"]:
            raise ValueError("class_names do not match the model")
        if missing := {"node_ids", "multi_label"} - set(config):
            raise KeyError(*missing)
        model.load_state_dict(load_file(paths[1]))
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}; --model must name the --out folder"
            " of a training"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{paths[0]} is damaged or not a model's ({error!r}); train again"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{paths[1]} does not fit the architecture in config.json: {reason}"
        ) from error
    return model.eval(), config
