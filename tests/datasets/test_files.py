import io
import re
import zipfile

import numpy as np
import pytest
import scipy.sparse
import torch

from datasets import GraphFileError, from_files

EDGES = "source,target\nann,bob\nbob,cid\n"
FEATURES = "node,f1,f2\nann,1,2\nbob,3,4\ncid,5,-6e-1\n"
LABELS = "node,label\nann,red\nbob,\ncid,blue\n"


@pytest.fixture
def write(tmp_path):
    """Write a file of text, bytes or (for npz) arrays, and return its path."""

    def writer(name, content):
        path = tmp_path / name
        if isinstance(content, dict):
            np.savez(path, **content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


def test_graph_with_features_and_labels(write):
    data = from_files(write("town.csv", EDGES), write("f.csv", FEATURES), write("l.csv", LABELS))
    assert data.node_ids == ["ann", "bob", "cid"]
    assert torch.equal(data.x, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, -0.6]]))
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert data.y.tolist() == [1, -1, 0]
    assert data.class_names == ["blue", "red"]
    assert data.name == "town"
    assert "edge_attr" not in data
    # one node of each class: both are trained on, the unlabelled one is in no mask
    assert data.train_mask.tolist() == [True, False, True]
    assert not data.val_mask.any() and not data.test_mask.any()
    assert (data.x.dtype, data.edge_index.dtype, data.y.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )


def test_edges_alone_give_one_hot_features_and_no_labels(write):
    data = from_files(write("e.csv", EDGES))
    assert torch.equal(data.x, torch.eye(3))
    assert data.y.tolist() == [-1, -1, -1]
    assert data.class_names == []
    assert not (data.train_mask | data.val_mask | data.test_mask).any()


def test_nodes_without_features_file_are_those_of_labels_then_edges(write):
    labels = write("l.csv", "node,label\nzoe,red\nbob,blue\n")
    data = from_files(write("e.csv", EDGES), labels=labels)
    assert data.node_ids == ["zoe", "bob", "ann", "cid"]
    assert data.y.tolist() == [1, 0, -1, -1]
    assert data.edge_index[:, data.edge_index[0] < data.edge_index[1]].tolist() == [[1, 1], [2, 3]]


def test_directed_edges_stay_as_listed(write):
    edges = write("e.csv", "source,target\nb,a\na,b\nb,a\na,a\n")
    data = from_files(edges, undirected=False)
    assert data.node_ids == ["b", "a"]
    assert data.edge_index.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1]]


def test_undirected_edges_are_there_once_each_way(write):
    edges = write("e.csv", "source,target,w\nb,a,1\na,b,3\na,a,5\nc,b,7\n")
    data = from_files(edges)
    assert data.edge_index.tolist() == [[0, 0, 1, 1, 2], [1, 2, 0, 1, 0]]
    assert data.edge_attr.tolist() == [[2.0], [7.0], [2.0], [5.0], [7.0]]


def test_further_columns_become_edge_attr_wherever_they_stand(write):
    edges = write("e.csv", "w,source,v,target\n0.5,ann,1,bob\n2,bob,-3,cid\n")
    data = from_files(edges, undirected=False)
    assert data.edge_index.tolist() == [[0, 1], [1, 2]]
    assert torch.equal(data.edge_attr, torch.tensor([[0.5, 1.0], [2.0, -3.0]]))


@pytest.mark.parametrize("undirected", [True, False])
def test_graph_without_edges(write, undirected):
    features = write("f.csv", FEATURES)
    data = from_files(write("e.csv", "source,target\n"), features, undirected=undirected)
    assert data.edge_index.shape == (2, 0)
    assert data.edge_index.dtype == torch.int64
    assert data.num_nodes == 3
    data = from_files(write("e.csv", "source,target,w\n"), features, undirected=undirected)
    assert data.edge_attr.shape == (0, 1)


def test_given_split_is_kept(write):
    labels = write("l.csv", "split,node,label\ntest,ann,red\n,bob,red\nval,cid,blue\n")
    data = from_files(write("e.csv", EDGES), write("f.csv", FEATURES), labels)
    assert data.train_mask.tolist() == [False, False, False]
    assert data.val_mask.tolist() == [False, False, True]
    assert data.test_mask.tolist() == [True, False, False]
    assert data.y.tolist() == [1, 1, 0]


def test_drawn_split_is_stratified_and_follows_the_seed(write):
    edges = write("e.csv", "source,target\n")
    rows = "".join(f"n{i},{i % 2}\n" for i in range(100))
    labels = write("l.csv", "node,label\n" + rows)
    data = from_files(edges, labels=labels, labels_per_class=20)
    assert [data.y[data[f"{m}_mask"]].bincount().tolist() for m in ("train", "val", "test")] == [
        [20, 20],
        [10, 10],
        [20, 20],
    ]
    again, other = from_files(edges, labels=labels), from_files(edges, labels=labels, seed=1)
    assert torch.equal(again.train_mask, data.train_mask)
    assert not torch.equal(other.train_mask, data.train_mask)


def test_numbered_classes_are_sorted_by_number(write):
    edges = write("e.csv", "source,target\n")
    labels = write("l.csv", "node,label\na,10\nb,9\nc,100\n")
    assert from_files(edges, labels=labels).class_names == ["9", "10", "100"]
    labels = write("l.csv", "node,label\na,10\nb,9\nc,x\n")
    assert from_files(edges, labels=labels).class_names == ["10", "9", "x"]


def test_excel_file_with_byte_order_mark_spaces_quotes_and_blank_lines(write):
    edges = write("e.csv", '\ufeffsource, target\r\n"Smith, Ann",bob\r\n\r\n  \r\nbob,"Zoë"\r\n')
    data = from_files(edges)
    assert data.node_ids == ["Smith, Ann", "bob", "Zoë"]
    assert data.num_edges == 4


def test_npz_numbers_its_nodes_from_zero(write):
    features = write("f.npz", {"x": np.arange(6).reshape(3, 2)})
    data = from_files(write("e.csv", "source,target\n0,2\n"), features)
    assert data.node_ids == ["0", "1", "2"]
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.edge_index.tolist() == [[0, 2], [2, 0]]


@pytest.mark.parametrize("ids", [["ann", "bob", "cid"], [30, 10, 20]])
def test_npz_with_node_ids(write, ids):
    features = write("f.npz", {"x": np.ones((3, 1)), "node": np.array(ids)})
    data = from_files(write("e.csv", f"source,target\n{ids[2]},{ids[0]}\n"), features)
    assert data.node_ids == [str(i) for i in ids]
    assert data.edge_index.tolist() == [[0, 2], [2, 0]]


class Trap:
    """Unpickling this fails the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle inside the npz was loaded",)


def test_pickles_in_npz_are_never_loaded(write):
    features = write("f.npz", {"x": np.array([[Trap()]], dtype=object)})
    with pytest.raises(GraphFileError, match=r"f.npz: no readable npz .*allow_pickle=False"):
        from_files(write("e.csv", EDGES), features)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "e.csv: the file is empty; its first line must be a header with source, target"),
        ("\n\n", "e.csv: the file is empty"),
        ("source,goal\na,b\n", "e.csv, line 1: column 'target' is missing .*'goal'"),
        ("begin;end\na;b\n", "e.csv, line 1: column 'source' is missing .*separated by comma"),
        ("source,target,source\n", "e.csv, line 1: column 'source' is there twice"),
        ("source,target\nann,bob\nbob\n", r"e.csv, line 3: 1 fields, but the header has 2: \['bob"),
        ("source,target\nann,bob,cid\n", "e.csv, line 2: 3 fields, but the header has 2"),
        ("source,target,w\nann,bob,x1\n", "e.csv, line 2: column 'w' has 'x1'.*no finite"),
        ("source,target,w\nann,bob,1\nann,cid,nan\n", "e.csv, line 3: column 'w' has 'nan'"),
        ("source,target,w\nann,bob,\n", "e.csv, line 2: column 'w' has ''"),
        ("source,target\n\nann,bob\nann,eve\n", "e.csv, line 4: unknown node 'eve'; .*f.csv"),
        ("source,target\neve,ann\n", "e.csv, line 2: unknown node 'eve'"),
        ("source,target\nann, \n", r"e.csv, line 2: the node id is empty \(''\)"),
        ('source,target\nann,"bob\n', "e.csv, line 2: no valid csv"),
        (b"source,target\nann,\xff\n", "e.csv: not UTF-8 text .*save it as UTF-8"),
    ],
)
def test_bad_edges(write, content, message):
    with pytest.raises(GraphFileError, match=message):
        from_files(write("e.csv", content), write("f.csv", FEATURES))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "f.csv: the file is empty"),
        ("node,f1\n", "f.csv: a header but no rows; add one row per node"),
        ("node\nann\n", "f.csv, line 1: no column beside 'node'"),
        ("key,f1\nann,1\n", "f.csv, line 1: column 'node' is missing"),
        ("node,f1,f1\nann,1,2\n", "f.csv, line 1: column 'f1' is there twice"),
        ("node,f1\nann,1\nbob,one\n", "f.csv, line 3: column 'f1' has 'one'.*no finite"),
        ("node,f1,f2\nann,1,inf\n", "f.csv, line 2: column 'f2' has 'inf'"),
        ("node,f1\nann,NaN\n", "f.csv, line 2: column 'f1' has 'NaN'"),
        ("node,f1\nann,1e39\n", "f.csv, line 2: column 'f1' has '1e39'"),
        ("node,f1,f2\nann,1,2\nbob,3\n", "f.csv, line 3: 2 fields, but the header has 3"),
        ("node,f1\nann,1\nbob,2\nann,3\n", "f.csv, line 4: node 'ann' is listed twice.*line 2"),
        ("node,f1\n,1\n", "f.csv, line 2: the node id is empty"),
    ],
)
def test_bad_features(write, content, message):
    with pytest.raises(GraphFileError, match=message):
        from_files(write("e.csv", EDGES), write("f.csv", content))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "l.csv: the file is empty"),
        ("node,kind\nann,red\n", "l.csv, line 1: column 'label' is missing"),
        ("node,label,spilt\nann,red,val\n", "l.csv, line 1: unknown column 'spilt'"),
        ("node,label\nann,red\neve,red\n", "l.csv, line 3: unknown node 'eve'; .*f.csv"),
        ("node,label\nann,red\nann,blue\n", "l.csv, line 3: node 'ann' is listed twice.*line 2"),
        (
            "node,label,split\nann,red,holdout\n",
            "l.csv, line 2: unknown split 'holdout'.*train, val, test",
        ),
        ("node,label,split\nann,,test\n", "l.csv, line 2: node 'ann' is in split 'test' but has"),
        ("node,label,split\nann,red\n", "l.csv, line 2: 2 fields, but the header has 3"),
    ],
)
def test_bad_labels(write, content, message):
    with pytest.raises(GraphFileError, match=message):
        from_files(write("e.csv", EDGES), write("f.csv", FEATURES), write("l.csv", content))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no readable npz"),
        (b"PK\x03\x04 broken", "no readable npz"),
        (b"plain text", "no readable npz"),
        ({"features": np.ones((3, 1))}, "no array 'x'"),
        ({"x": np.ones(3)}, r"x is float64 of shape \[3\]"),
        ({"x": np.array([["a"], ["b"]])}, "x is <U1"),
        ({"x": np.ones((0, 2))}, r"x is float64 of shape \[0, 2\]"),
        ({"x": np.array([[1.0, 2.0], [3.0, np.nan]])}, r"x\[1, 1\] is nan"),
        ({"x": np.array([[1e300]])}, r"x\[0, 0\] is 1e\+300"),
        ({"x": np.ones((3, 1)), "node": np.arange(2)}, r"node is int64 of shape \[2\]"),
        ({"x": np.ones((2, 1)), "node": np.array([0.0, 1.0])}, "node is float64"),
        ({"x": np.ones((3, 1)), "node": np.array(["a", "b", "a"])}, r"node\[2\] is 'a', as is"),
        ({"x": np.ones((2, 1)), "node": np.array(["a", " "])}, r"node\[1\] is empty"),
    ],
)
def test_bad_npz(write, content, message):
    with pytest.raises(GraphFileError, match="f.npz: .*" + message):
        from_files(write("e.csv", EDGES), write("f.npz", content))


def npz(header, body, compression=zipfile.ZIP_STORED):
    """An npz whose array x has this header, whatever it holds."""
    array, out = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"fortran_order": False, **header})
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("x.npy", array.getvalue() + body)
    return out.getvalue()


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2, 2**62), (3, 2)])
def test_an_npz_whose_header_claims_another_size(write, shape):
    content = npz({"shape": shape, "descr": "<f8"}, bytes(32))
    with pytest.raises(GraphFileError, match=r"the header of x\.npy claims .* but there are 32"):
        from_files(write("e.csv", EDGES), write("f.npz", content))


def test_an_npz_may_not_unpack_to_more_than_the_limit(write, monkeypatch):
    monkeypatch.setattr("datasets.files.MAX_UNPACKED", 1000)
    edges, given = write("e.csv", "source,target\n0,1\n"), ({"shape": (50, 5), "descr": "<f8"},)
    stored = write("s.npz", npz(*given, bytes(2000)))
    assert from_files(edges, stored).x.shape == (50, 5)  # it is no larger than it looks
    packed = write("p.npz", npz(*given, bytes(2000), zipfile.ZIP_DEFLATED))
    with pytest.raises(GraphFileError, match=r"x\.npy unpacks to 2128 bytes, and 1000 are allowed"):
        from_files(edges, packed)


def test_an_encrypted_npz(write):
    content = bytearray(npz({"shape": (2, 2), "descr": "<f8"}, bytes(32)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    with pytest.raises(GraphFileError, match=r"no readable npz file \(.*encrypted"):
        from_files(write("e.csv", EDGES), write("f.npz", bytes(content)))


def test_npy_in_place_of_npz(tmp_path, write):
    np.save(tmp_path / "f.npy", np.ones((3, 1)))
    (tmp_path / "f.npy").rename(tmp_path / "f.npz")
    with pytest.raises(GraphFileError, match="no readable npz"):
        from_files(write("e.csv", EDGES), tmp_path / "f.npz")


def test_missing_files_are_named(tmp_path, write):
    edges = write("e.csv", EDGES)
    missing = re.escape(str(tmp_path / "none"))
    with pytest.raises(GraphFileError, match=f"{missing}.csv: cannot be read"):
        from_files(tmp_path / "none.csv")
    with pytest.raises(GraphFileError, match=f"{missing}.npz: no readable npz file"):
        from_files(edges, tmp_path / "none.npz")
    with pytest.raises(GraphFileError, match=f"{missing}.csv: cannot be read"):
        from_files(edges, labels=tmp_path / "none.csv")


def test_graph_without_nodes(write):
    with pytest.raises(GraphFileError, match=r"e.csv: no file names a node"):
        from_files(write("e.csv", "source,target\n"))


def test_too_many_nodes_for_one_hot_features(write):
    rows = "".join(f"{i},{i + 1}\n" for i in range(10_000))
    with pytest.raises(GraphFileError, match="10001 nodes are too many for one-hot"):
        from_files(write("e.csv", "source,target\n" + rows))


@pytest.mark.parametrize(
    "edges",
    ["src,dst\n3,1\n1,2\n", "Source;Target\n3;1\n1;2\n", "FROM\tto\n3\t1\n1\t2\n", "3,1\n1,2\n",
     "3 1\n1 2\n", "\n3\t1\n1\t2\n", "target,source\n1,3\n2,1\n"],
)  # fmt: skip
def test_edges_as_people_write_them(write, edges):
    data = from_files(write("e.csv", edges), undirected=False)
    assert data.node_ids == ["3", "1", "2"] or edges.startswith("target")
    ends = [[data.node_ids[n] for n in side] for side in data.edge_index.tolist()]
    assert ends == [["3", "1"], ["1", "2"]]


def test_numbers_of_an_edge_list_without_a_header(write):
    data = from_files(write("e.csv", "3;1;0.5\n1;2;2\n"), undirected=False)
    assert data.edge_attr.tolist() == [[0.5], [2.0]]


def test_splits_as_people_write_them(write):
    labels = "ID,Class,Mask\nann,x,Training\nbob,y,validation\ncid,x,TEST\n"
    data = from_files(write("e.csv", EDGES), labels=write("l.csv", labels))
    masks = [
        data[f"{split}_mask"].nonzero().flatten().tolist() for split in ("train", "val", "test")
    ]
    assert masks == [[0], [1], [2]] and data.class_names == ["x", "y"]


def test_a_name_of_a_column_goes_before_its_other_names(write):
    # Here "id" is a feature, for there is a column "node"
    data = from_files(write("e.csv", EDGES), write("f.csv", "node,id\nann,1\nbob,2\ncid,3\n"))
    assert data.x.tolist() == [[1.0], [2.0], [3.0]]


def test_sparse_features_stay_sparse(write, tmp_path):
    matrix = scipy.sparse.csr_array(np.array([[0, 2.5, 0], [0, 0, 0], [1, 0, 4]]))
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
    (tmp_path / "x.svm").write_text("1 2:2.5\n0\n1 1:1 3:4\n")
    edges = write("e.csv", "0,1\n2,0\n")
    for name in ("x.npz", "x.svm"):
        data = from_files(edges, tmp_path / name)
        assert data.x.layout == torch.sparse_csr and data.node_ids == ["0", "1", "2"]
        assert data.x.to_dense().tolist() == matrix.toarray().tolist()


def test_bad_libsvm(write):
    with pytest.raises(GraphFileError, match=r"x.svm: no readable libsvm file"):
        from_files(write("e.csv", "0,1\n"), write("x.svm", "1 a:b\n"))


def test_labels_that_are_quantities(write):
    edges = write("edges.csv", "0,1\n1,2\n")
    numbers = write("labels.csv", "node,label\n" + "".join(f"{n},{n / 4}\n" for n in range(12)))
    assert from_files(edges, labels=numbers).y.tolist() == [*range(12)]  # classes, by default
    for task in (None, "regression"):
        data = from_files(edges, labels=numbers, task=task)
        assert data.y.tolist() == [n / 4 for n in range(12)] and data.class_names == []
        sizes = [int(data[f"{split}_mask"].sum()) for split in ("train", "val", "test")]
        assert sizes == [6, 2, 4]
    whole = write("whole.csv", "node,label\n" + "".join(f"{n},{n // 2}\n" for n in range(24)))
    assert from_files(edges, labels=whole, task=None).class_names == []  # 12 numbers of 24 nodes
    many = write("many.csv", "node,label\n" + "".join(f"{n},{n // 4}.0\n" for n in range(48)))
    assert len(from_files(edges, labels=many, task=None).class_names) == 12
    few = write("few.csv", "node,label\n" + "".join(f"{n},{n % 3}\n" for n in range(12)))
    assert from_files(edges, labels=few, task=None).class_names == ["0", "1", "2"]
    some = from_files(edges, labels=write("some.csv", "node,label\n0,1.5\n1,\n"), task="regression")
    assert some.y[0] == 1.5 and some.y[1:].isnan().all() and not some.test_mask[1:].any()
    with pytest.raises(GraphFileError, match="label of node '0' is 'nan', which is no finite"):
        from_files(edges, labels=write("bad.csv", "node,label\n0,nan\n"), task="regression")
    with pytest.raises(ValueError, match="task must be None or one of"):
        from_files(edges, task="ranking")
