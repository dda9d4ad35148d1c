"""Several processes against one: what is measured, and that it is reported if one fails."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from benchmarks import scale
from examples.shared.files import UserError

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


def test_layers_over_parts_are_exact_and_bytes_follow_the_formula() -> None:
    first, second = scale.together(2, "of_times", 1, sizes=[200, 1500], turns=1)
    assert first.keys() == scale.LAYERS.keys()
    for name, found in first.items():
        assert found["error"] < 1e-5
        assert found["sent"] == found["formula"] > 0
        assert len(found["one"]) == len(found["several"]) == len(second[name]["several"]) == 1


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(UserError, match="of_sampler in 1 processes failed"):
        scale.together(1, "of_sampler", 1, sizes=[10, 20], batches="none")


def test_the_sampler_is_measured() -> None:
    assert all(speed > 0 for speed in scale.of_sampler(0, 1, [3000, 9000], 1).values())


def test_errors_are_those_of_the_dtype_where_a_part_is_empty() -> None:
    given = {"sizes": [200, 1500], "empty": True, "kind": "float64"}
    for found in scale.together(2, "of_errors", 1, **given)[0].values():
        assert found["error"] < 1e-12 and found["sent"] == found["formula"] == 0
