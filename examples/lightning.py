"""A graph attention network as a LightningModule, on the digits graph:

pip install -e '.[examples,lightning]'
python -m examples.lightning
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.digits import digits_graph
from gat import GAT


class Classifier(lightning.LightningModule):
    """Trains on the nodes of a graph whose label is known; one batch is the whole graph."""

    def __init__(self, in_channels: int, classes: int, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = GAT(in_channels, 64, 2, classes, **{"heads": 8, "out_heads": 1} | options)

    def training_step(self, graph: Any, _: int) -> Tensor:
        logits = self.model(graph.x, graph.edge_index)
        return F.cross_entropy(logits[graph.train_mask], graph.y[graph.train_mask])

    def test_step(self, graph: Any, _: int) -> None:
        right = self.model(graph.x, graph.edge_index).argmax(-1) == graph.y
        self.log("accuracy", right[graph.test_mask].float().mean(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.005, weight_decay=5e-4)


def main(epochs: int = 100) -> float:
    graph = digits_graph()
    batches: Any = DataLoader([graph], collate_fn=lambda graphs: graphs[0])  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir="runs/lightning"
    )
    model = Classifier(graph.num_features, int(graph.y.max()) + 1)
    trainer.fit(model, batches)
    return trainer.test(model, batches)[0]["accuracy"]


if __name__ == "__main__":
    main()
