"""A reader's own graph from csv and npz files, with errors that name the file and the line."""

import csv
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import load_npz
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from .parallel_text import MAX_UNPACKED
from .splits import stratified_split

SPLITS = ("train", "val", "test")
TASKS = ("classification", "regression")
# Other names that these have in people's files, whatever their case
ALIASES = {
    "source": ("src", "from"), "target": ("dst", "to", "dest", "destination"),
    "node": ("id", "node_id", "nodeid", "name"), "label": ("class", "y"), "split": ("mask", "set"),
    "train": ("training",), "val": ("validation", "valid", "dev"), "test": ("testing",),
}  # fmt: skip
_LARGEST = float(np.finfo(np.float32).max)
# What a file that is no npz of numbers may raise as it is read
_UNREADABLE = (
    *(OSError, ValueError, TypeError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
MAX_ONE_HOT = 10_000  # nodes; their one-hot features take 400 MB


class GraphFileError(ValueError):
    """A file of a graph cannot be read as one; the message names the file, the line and a mend."""


def from_files(
    edges: str | os.PathLike[str],
    features: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    *,
    undirected: bool = True,
    labels_per_class: int = 20,
    seed: int = 0,
    task: str | None = "classification",
) -> Data:
    """Read a graph from an edge list and, if there are any, node features and labels.

    The csv files are UTF-8 with a header, separated by commas, semicolons, tabs or spaces,
    whichever the first line has most of; node ids may be any text. Columns and splits may have any
    case and the names of ``ALIASES``, such as ``src`` and ``validation``.

    - ``edges``: columns ``source`` and ``target``; all other columns are numbers and become
      ``edge_attr``. A file with a header only is a graph without edges. If the first line begins
      with two whole numbers, there is no header, and it is an edge.
    - ``features``: a csv with a column ``node`` and one numeric column per feature; or an npz
      with an array ``x`` ``[N, F]`` and, unless the ids are 0 to N-1, an array ``node`` ``[N]``;
      a compressed one may unpack to 1 GiB for each array. An npz of a sparse matrix, as
      ``scipy.sparse.save_npz`` writes it, gives a sparse ``x``, and so does a file in the format of
      libsvm (``.svm``, ``.libsvm``), whose labels are not read; their ids are 0 to N-1.
    - ``labels``: columns ``node``, ``label`` and perhaps ``split`` (train, val or test). An empty
      label means unknown, an empty split means in no mask. Without a ``split`` column the masks
      are drawn: from each class ``labels_per_class`` nodes to train on, but at most half of the
      class; of the others a third to validate and two thirds to test. Where labels are quantities,
      half of the labelled nodes train.

    The nodes are the rows of ``features``; without it, those of ``labels`` and then those of
    ``edges``, in the order in which they appear, each with a one-hot feature of its own (such a
    model cannot be applied to another graph).

    Args:
        edges: path of the edge list.
        features: path of the node features, by default none.
        labels: path of the labels, by default none: every node is unlabelled.
        undirected: add the reverse of each edge (default). An edge that is then there twice
            becomes one, with the mean of its attributes. If False, the edges stay as listed.
        labels_per_class: training nodes of each class, where the split is drawn.
        seed: of the drawn split.
        task: "classification", where each label is the name of a class; "regression", where it is a
            number, a quantity; None: whichever the labels look like, which is a regression if they
            are numbers, more than 10 different ones, of which some are not whole or which are more
            than a third as many as the labels.

    Returns:
        Data with ``x`` ``[N, F]`` (``torch.sparse_csr`` where the features' file is sparse),
        ``edge_index`` ``[2, E]``, ``edge_attr`` ``[E, A]`` if the
        edge list has further columns, ``y`` ``[N]`` (-1 where unlabelled), the masks, ``name``,
        ``node_ids`` (list of str) and ``class_names`` (list of str, sorted, by number if all of
        them are whole numbers). A class of one or two nodes may be missing from a drawn mask. For a
        regression ``y`` is float32, NaN where unlabelled, and ``class_names`` is empty.

    Raises:
        GraphFileError: a file is missing or empty or lacks a column; a row has too many or too
            few fields; a value is no finite number; a node is unknown or listed twice; a split is
            no split.
        ValueError: ``labels_per_class`` is below 1, or ``task`` is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     edges, labels = Path(folder, "edges.csv"), Path(folder, "labels.csv")
        ...     _ = edges.write_text("source,target\\nann,bob\\nbob,cid\\n")
        ...     _ = labels.write_text("node,label,split\\nann,red,train\\ncid,blue,test\\n")
        ...     data = from_files(edges, labels=labels)
        >>> data.node_ids, data.y.tolist(), data.class_names
        (['ann', 'cid', 'bob'], [1, 0, -1], ['blue', 'red'])
        >>> data.edge_index.tolist()
        [[0, 1, 2, 2], [2, 2, 0, 1]]
    """
    if task not in (None, *TASKS):
        raise ValueError(f"task must be None or one of {', '.join(TASKS)}; got {task!r}")
    feature_path = None if features is None else Path(features)
    index: dict[str, int] = {}  # the number of each node id
    x = None
    if feature_path is not None:
        readers: dict[str, Callable[[Path], tuple[dict[str, int], Tensor]]] = {
            ".npz": _read_npz,
            ".svm": _read_libsvm,
            ".libsvm": _read_libsvm,
        }
        index, x = readers.get(feature_path.suffix, _read_features)(feature_path)
    label_of: dict[str, str] = {}
    split_of: dict[str, str] | None = None
    if labels is not None:
        label_of, split_of = _read_labels(Path(labels), index, feature_path)
    edge_index, edge_attr = _read_edges(Path(edges), index, feature_path)

    num_nodes = len(index)
    if num_nodes == 0:
        raise _error(Path(edges), None, "no file names a node", "list edges, features or labels")
    if x is None:
        if num_nodes > MAX_ONE_HOT:
            problem = f"{num_nodes} nodes are too many for one-hot features ({MAX_ONE_HOT} at most)"
            raise _error(Path(edges), None, problem, "give a file of features")
        x = torch.eye(num_nodes)
    if undirected and edge_attr is not None:
        edge_index, edge_attr = to_undirected(edge_index, edge_attr, num_nodes, reduce="mean")
    elif undirected:
        edge_index = to_undirected(edge_index, num_nodes=num_nodes)

    given = [label for label in label_of.values() if label]
    if task is None:
        task = "regression" if _are_quantities(given) else "classification"
    if task == "regression":
        class_names: list[str] = []
        quantity = _quantities(Path(labels or edges), label_of)
        y = torch.tensor([quantity.get(node, math.nan) for node in index])
        known = y.isfinite()
    else:
        class_names = _sorted_names(set(given))
        code = {name: number for number, name in enumerate(class_names)}
        y = torch.tensor([code.get(label_of.get(node, ""), -1) for node in index])
    if split_of is None and task == "regression":
        half = max(1, int(known.sum()) // 2)  # of what is one class as far as a split can tell
        masks = stratified_split(known.long() - 1, labels_per_class=half, seed=seed)
    elif split_of is None:
        masks = stratified_split(y, labels_per_class=labels_per_class, seed=seed)
    else:
        place = {split: number for number, split in enumerate(SPLITS)}
        split = torch.tensor([place.get(split_of.get(node, ""), -1) for node in index])
        masks = (split == 0, split == 1, split == 2)

    data = Data(x=x, edge_index=edge_index, edge_attr=edge_attr, y=y)
    data.train_mask, data.val_mask, data.test_mask = masks
    data.name = Path(edges).stem
    data.node_ids = list(index)
    data.class_names = class_names
    return data


def _error(path: Path, line: int | None, problem: str, mend: str) -> GraphFileError:
    where = path if line is None else f"{path}, line {line}"
    return GraphFileError(f"{where}: {problem}; {mend}")


def _called(name: str, known: Iterable[str]) -> str:
    """Return which of the known names this is; the name itself if it is none."""
    folded = name.casefold()
    return next((k for k in known if folded == k or folded in ALIASES.get(k, ())), name)


def _separator(line: str) -> str:
    found = max(",;\t", key=line.count)
    return found if found in line or " " not in line.strip() else " "


def _read_csv(
    path: Path, required: Sequence[str], without_header: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the stripped fields of each row, the header first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            separator = _separator(first)
            rows = csv.reader(file, strict=True, delimiter=separator, skipinitialspace=True)
            columns: list[str] = []
            try:
                for row in rows:
                    fields = [field.strip() for field in row]
                    if fields in ([], [""]):
                        continue
                    if not columns and without_header and all(map(str.isdecimal, fields[:2])):
                        further = [f"column {n}" for n in range(3, len(fields) + 1)]
                        columns = [*required, *further]
                        yield 0, columns
                    elif not columns:
                        known = (*required, "split") if "label" in required else required
                        lacking = [name for name in known if name not in fields]
                        columns = [f if f in known else _called(f, lacking) for f in fields]
                        fields = columns
                        _check_header(path, rows.line_num, columns, required)
                    elif len(fields) != len(columns):
                        problem = f"{len(fields)} fields, but the header has {len(columns)}"
                        mend = "give every column a value; put quotes around a value with a comma"
                        raise _error(path, rows.line_num, f"{problem}: {fields}", mend)
                    yield rows.line_num, fields
            except csv.Error as error:
                mend = "check the quotes of this line and those before"
                raise _error(path, rows.line_num, f"no valid csv ({error})", mend) from error
        if not columns:
            mend = f"its first line must be a header with {', '.join(required)}"
            raise _error(path, None, "the file is empty", mend)
    except UnicodeDecodeError as error:
        raise _error(path, None, f"not UTF-8 text ({error})", "save it as UTF-8 csv") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise _error(path, None, problem, "give the path of a csv file") from error


def _check_header(path: Path, line: int, columns: list[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in columns:
            problem = f"column {name!r} is missing from the header {columns}"
            mend = f"name the columns {', '.join(required)}, separated by commas"
            raise _error(path, line, problem, mend)
    for name in columns:
        if columns.count(name) > 1:
            raise _error(path, line, f"column {name!r} is there twice", "rename or remove one")


def _numbers(path: Path, line: int, columns: list[str], fields: list[str]) -> np.ndarray:
    with np.errstate(over="ignore"):  # a number too large for float32 becomes inf
        values = np.array([_float(field) for field in fields]).astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        bad = int(finite.argmin())
        problem = f"column {columns[bad]!r} has {fields[bad]!r}, which is no finite float32 number"
        raise _error(path, line, problem, "write a number such as 0.5, or leave this row out")
    return values


def _float(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return float("nan")


def _number_of(
    node: str, index: dict[str, int], features: Path | None, path: Path, line: int
) -> int:
    """Return the number of a node; a new one gets the next, unless the features list all nodes."""
    if not node:
        raise _error(path, line, "the node id is empty ('')", "name the node, or remove this row")
    if features is not None and node not in index:
        mend = f"add it to {features}, or remove this row"
        raise _error(path, line, f"unknown node {node!r}", mend)
    return index.setdefault(node, len(index))


def _once(node: str, lines: dict[str, int], path: Path, line: int) -> None:
    if node in lines:
        problem = f"node {node!r} is listed twice, first in line {lines[node]}"
        raise _error(path, line, problem, "keep one of the two rows")
    lines[node] = line


def _read_features(path: Path) -> tuple[dict[str, int], Tensor]:
    rows = _read_csv(path, ["node"])
    line, columns = next(rows)
    at = columns.index("node")
    names = columns[:at] + columns[at + 1 :]
    if not names:
        raise _error(path, line, "no column beside 'node'", "add one column per feature")
    index: dict[str, int] = {}
    lines: dict[str, int] = {}
    values = []
    for line, fields in rows:
        node = fields.pop(at)
        _once(node, lines, path, line)
        _number_of(node, index, None, path, line)
        values.append(_numbers(path, line, names, fields))
    if not values:
        raise _error(path, None, "a header but no rows", "add one row per node")
    return index, torch.from_numpy(np.stack(values))


def _read_npz(path: Path) -> tuple[dict[str, int], Tensor]:
    mend = "write it with numpy.savez(path, x=features, node=ids), without object arrays"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if {"indptr.npy", "indices.npy", "data.npy", "shape.npy"} <= {*names}:
                return _sparse(path, load_npz(path))
            if "x.npy" not in names:
                raise _error(path, None, "no array 'x'", mend)
            x = _read_array(archive, "x.npy")
            node = _read_array(archive, "node.npy") if "node.npy" in names else np.arange(len(x))
    except GraphFileError:
        raise
    except _UNREADABLE as error:
        raise _error(path, None, f"no readable npz file ({error})", mend) from error
    if x.dtype.kind not in "fiub" or x.ndim != 2 or 0 in x.shape:
        problem = f"x is {x.dtype} of shape {list(x.shape)}"
        raise _error(path, None, problem, "save numbers, one row per node, one column per feature")
    if node.dtype.kind not in "iuU" or node.shape != x.shape[:1]:
        problem = f"node is {node.dtype} of shape {list(node.shape)}"
        mend = f"save text or whole numbers, one for each of the {len(x)} rows of x"
        raise _error(path, None, problem, mend)
    with np.errstate(over="ignore"):
        values = x.astype(np.float32)
    for row, column in np.argwhere(~np.isfinite(values)):
        problem = f"x[{row}, {column}] is {x[row, column]}, which is no finite float32 number"
        raise _error(path, None, problem, "replace it by a number, or leave this row out")
    index: dict[str, int] = {}
    for row, name in enumerate(str(entry).strip() for entry in node.tolist()):
        if not name:
            raise _error(path, None, f"node[{row}] is empty ('')", "name the node")
        if name in index:
            problem = f"node[{row}] is {name!r}, as is node[{index[name]}]"
            raise _error(path, None, problem, "keep one of the two rows")
        index[name] = row
    return index, torch.from_numpy(values)


def _read_libsvm(path: Path) -> tuple[dict[str, int], Tensor]:
    # Imported here, since it takes a second.
    from sklearn.datasets import load_svmlight_file

    try:
        matrix, _ = load_svmlight_file(str(path), dtype=np.float32)
    except (ValueError, OSError) as error:
        mend = "write rows such as '1 3:0.5 7:2', a label and columns with their values"
        raise _error(path, None, f"no readable libsvm file ({error})", mend) from error
    return _sparse(path, matrix)


def _sparse(path: Path, matrix: Any) -> tuple[dict[str, int], Tensor]:
    matrix = matrix.tocsr().astype(np.float32)
    matrix.sum_duplicates()
    if 0 in matrix.shape or not np.isfinite(matrix.data).all():
        problem = f"the matrix of shape {list(matrix.shape)} is empty or not finite"
        raise _error(path, None, problem, "save a row of finite numbers for each node")
    rows, columns = (torch.from_numpy(p.astype(np.int64)) for p in (matrix.indptr, matrix.indices))
    x = torch.sparse_csr_tensor(rows, columns, torch.from_numpy(matrix.data), matrix.shape)
    return {str(row): row for row in range(matrix.shape[0])}, x


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array of an npz, whose header numpy would believe, and allocate whatever it claims.

    Raises:
        ValueError: it is no array, holds objects, unpacks to more than `MAX_UNPACKED`, or its
            header claims another size than it has.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > MAX_UNPACKED:
        raise ValueError(
            f"{name} unpacks to {info.file_size} bytes, and {MAX_UNPACKED} are allowed: do not "
            "compress it"
        )
    with archive.open(info) as file:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(np.lib.format.read_magic(file))
        if read_header is None:
            raise ValueError(f"{name} has field names, which arrays of numbers or text have not")
        shape, _, dtype = read_header(file)
        claimed, there = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if claimed != there and not dtype.hasobject:
            raise ValueError(
                f"the header of {name} claims {list(shape)} of {dtype}, {claimed} bytes, but there "
                f"are {there}"
            )
    with archive.open(info) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _read_labels(
    path: Path, index: dict[str, int], features: Path | None
) -> tuple[dict[str, str], dict[str, str] | None]:
    """Return the label and the split of each listed node, adding new nodes to the index."""
    rows = _read_csv(path, ["node", "label"])
    line, columns = next(rows)
    for name in columns:
        if name not in ("node", "label", "split"):
            mend = "a file of labels has node, label and perhaps split: rename or remove it"
            raise _error(path, line, f"unknown column {name!r}", mend)
    label_of: dict[str, str] = {}
    split_of: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, fields in rows:
        entry = dict(zip(columns, fields, strict=True))
        node, label = entry["node"], entry["label"]
        split = _called(entry.get("split", ""), SPLITS)
        _number_of(node, index, features, path, line)
        _once(node, lines, path, line)
        if split not in ("", *SPLITS):
            mend = f"write {', '.join(SPLITS)}, or nothing for a node in no mask"
            raise _error(path, line, f"unknown split {split!r}", mend)
        if split and not label:
            problem = f"node {node!r} is in split {split!r} but has no label"
            raise _error(path, line, problem, "give its label, or leave its split empty")
        label_of[node], split_of[node] = label, split
    return label_of, split_of if "split" in columns else None


def _are_quantities(labels: Sequence[str]) -> bool:
    """Return whether labels look like numbers that were measured, not like names of classes."""
    different = {_float(label) for label in set(labels)}
    if len(different) <= 10 or not all(map(math.isfinite, different)):
        return False
    return len(different) > len(labels) / 3 or not all(map(float.is_integer, different))


def _quantities(path: Path, label_of: dict[str, str]) -> dict[str, float]:
    """Return the number that each labelled node has."""
    found = {node: _float(label) for node, label in label_of.items() if label}
    for node, value in found.items():
        if not abs(value) < _LARGEST:
            problem = f"the label of node {node!r} is {label_of[node]!r}, which is no finite number"
            mend = "write a number such as 0.5, or learn classes with the task 'classification'"
            raise _error(path, None, problem, mend)
    return found


def _read_edges(
    path: Path, index: dict[str, int], features: Path | None
) -> tuple[Tensor, Tensor | None]:
    """Return edge_index and, where there are further columns, edge_attr; adds new nodes."""
    rows = _read_csv(path, ["source", "target"], without_header=True)
    _, columns = next(rows)
    ends = [columns.index("source"), columns.index("target")]
    others = [at for at in range(len(columns)) if at not in ends]
    names = [columns[at] for at in others]
    pairs: list[list[int]] = []
    values: list[np.ndarray] = []
    for line, fields in rows:
        pairs.append([_number_of(fields[at], index, features, path, line) for at in ends])
        if others:
            values.append(_numbers(path, line, names, [fields[at] for at in others]))
    edge_index = torch.tensor(pairs, dtype=torch.long).view(-1, 2).t().contiguous()
    if not others:
        return edge_index, None
    return edge_index, torch.from_numpy(np.array(values, np.float32).reshape(-1, len(others)))


def _sorted_names(names: set[str]) -> list[str]:
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
