"""The command line of `examples.node_classification`."""

from __future__ import annotations

from examples.shared.options import (
    COUNT,
    FACTOR,
    NATURAL,
    RATE,
    SEED,
    SHARE,
    Commands,
    Parser,
    add_graph_options,
)

NAMES = {"gat": "GAT", "gatv2": "GATv2", "transformer": "GraphTransformer", "agnn": "AGNN"}
SCORES = (  # of `Score.named`, but for "location": nodes have no order
    "dot", "scaled_dot", "cosine", "general", "additive", "concat", "separable",
    "trilinear",
)  # fmt: skip
NORMALIZERS = ("softmax", "sparsemax", "entmax", "hard", "identity")
TASKS = ("classification", "regression")
PROGRAM = "python -m examples.node_classification"
CHOICES = ("gat", "gatv2", "transformer", "agnn")


def training_parser() -> Parser:
    """The options of a training."""
    parser = Parser(
        "node_classification",
        "Train a graph attention network to tell the class of each node of a graph, or a quantity.",
        epilog=f"'{PROGRAM} predict --help': apply a model that was trained.",
    )
    add_graph_options(parser)
    parser.group("labels of --labels")("--task", choices=TASKS,
        help="what they are: names of classes, or quantities; default: quantities if they are"
        " numbers of which many differ")  # fmt: skip
    parser.group("features")("--standardise", action="store_true", default=None,
        help="give every feature the mean 0 and the deviation 1")  # fmt: skip
    add = parser.group("model (defaults: the paper's; --dataset digits has its own)")
    add("--model", choices=CHOICES, default="gat", help="default: gat")
    add("--score", choices=SCORES, help="instead of the model's own")
    add("--normalizer", choices=NORMALIZERS, help="instead of softmax")
    add("--layers", type=COUNT)
    add("--hidden", type=COUNT, help="channels per head of the hidden layers")
    add("--heads", type=COUNT, help="of the hidden layers")
    add("--out-heads", type=COUNT, help="of the last layer, averaged")
    add("--dropout", type=SHARE, help="of layer inputs and attention weights")
    add("--value-dropout", type=SHARE,
        help="of what nodes hand on, as in the code of GAT's authors")  # fmt: skip
    add("--residual", action="store_true", default=None, help="add skip connections")
    add("--norm", action="store_true", default=None, help="add layer normalisation")
    add("--feed-forward", type=NATURAL, metavar="K",
        help="add feed-forward networks with K times the width; 0: none")  # fmt: skip
    add("--jumping", choices=("cat", "max", "lstm"), help="let the output see all layers")
    add = parser.group("training (defaults: as above)")
    add("--lr", type=RATE, help="learning rate of Adam")
    add("--weight-decay", type=FACTOR)
    add("--epochs", type=COUNT, help="at most")
    add("--patience", type=COUNT, help="epochs without a new best before stopping")
    add("--sampled", type=COUNT, nargs="+", metavar="N",
        help="mini-batches of as many drawn neighbours for each layer, last first")  # fmt: skip
    add("--batch-size", type=COUNT, default=512, metavar="NODES", help="of --sampled; default: 512")
    add("--runs", type=COUNT, default=3, help="how many, each from another seed")
    add("--seed", type=SEED, default=0, help="of the first run")
    add("--device", default="cpu", help="as torch names it; default: cpu")
    add = parser.group("output")
    add("--out", metavar="DIR", help="results already there are replaced; default: runs/<graph>")
    add("--checkpoint-every", type=COUNT, default=100, metavar="EPOCHS")
    parser.add_resumption(add)
    return parser


def prediction_parser() -> Parser:
    """The options of a prediction."""
    parser = Parser(
        "node_classification predict", "Write a csv (node, prediction, probability) for a graph."
    )
    add_graph_options(parser)
    add = parser.group("prediction")
    add("--model", required=True, metavar="DIR", help="the --out of a training")
    add("--output", required=True, metavar="CSV", help="where to write")
    add("--device", default="cpu", help="as torch names it; default: cpu")
    return parser


def parser() -> Commands:
    """The commands of the program."""
    commands = {"train": training_parser, "predict": prediction_parser}
    return Commands("node_classification", commands, default="train")
