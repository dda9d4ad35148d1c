"""Real data: graphs, and reviews.

A graph is one ``torch_geometric.data.Data`` with ``x`` (float32, ``[N, F]``), ``edge_index``
(int64, ``[2, E]``, row 0 the source, row 1 the target), ``y`` (int64, ``[N]``), the bool masks
``train_mask``, ``val_mask`` and ``test_mask`` (``[N]``), ``name`` (str) and ``class_names`` (list
of str, one per value of ``y``); `dictionary_lookup` generates many small
ones. Reviews are one ``LabelledReviews``.
Pairs of sentences come as ``PairSplits``, sentences with a tag for each word as
``TaggedSentences``.
"""

from .batches import Batch, Batches, EncodedPairs, bucketed, encode_pairs, in_order
from .conllu import TaggedSentences, read_conllu
from .dictionary_lookup import DictionaryLookup, LookupGraphs, dictionary_lookup
from .digits import digits_graph
from .fetch import DataFileError, cache_folder
from .files import GraphFileError, from_files
from .human_dates import human_dates
from .imdb import LabelledReviews, Reviews, imdb, last_words, reviews_from_csv, split_words
from .inflections import Inflections, inflections, read_inflections
from .karate import karate_club
from .multi30k import multi30k
from .node_benchmarks import from_npz, gnn_benchmark, heterophilous
from .pairs import Pairs, PairSplits
from .parallel_text import TextFileError, parallel_text
from .planetoid import planetoid
from .ppi import PPIGraphs, ppi
from .tokens import Tokenizer
from .tudataset import tudataset
from .vocabulary import Vocabulary, VocabularyError

__all__ = [
    "Batch",
    "Batches",
    "DataFileError",
    "DictionaryLookup",
    "EncodedPairs",
    "GraphFileError",
    "Inflections",
    "LabelledReviews",
    "LookupGraphs",
    "PPIGraphs",
    "PairSplits",
    "Pairs",
    "Reviews",
    "TaggedSentences",
    "TextFileError",
    "Tokenizer",
    "Vocabulary",
    "VocabularyError",
    "bucketed",
    "cache_folder",
    "dictionary_lookup",
    "digits_graph",
    "encode_pairs",
    "from_files",
    "from_npz",
    "gnn_benchmark",
    "heterophilous",
    "human_dates",
    "imdb",
    "in_order",
    "inflections",
    "karate_club",
    "last_words",
    "multi30k",
    "parallel_text",
    "planetoid",
    "ppi",
    "read_conllu",
    "read_inflections",
    "reviews_from_csv",
    "split_words",
    "tudataset",
]
