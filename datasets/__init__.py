"""Real graphs, each as one ``torch_geometric.data.Data`` with the same fields.

Every loader returns ``x`` (float32, ``[N, F]``), ``edge_index`` (int64, ``[2, E]``, row 0 the
source, row 1 the target), ``y`` (int64, ``[N]``), the bool masks ``train_mask``, ``val_mask`` and
``test_mask`` (``[N]``), ``name`` (str) and ``class_names`` (list of str, one per value of ``y``).
"""

from .digits import digits_graph
from .fetch import DataFileError, cache_folder
from .files import GraphFileError, from_files
from .karate import karate_club
from .planetoid import planetoid

__all__ = [
    "DataFileError",
    "GraphFileError",
    "cache_folder",
    "digits_graph",
    "from_files",
    "karate_club",
    "planetoid",
]
