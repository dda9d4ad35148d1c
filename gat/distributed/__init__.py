"""Graphs in parts, one for each process: whole-graph training beyond one process and one machine.

`Partition` cuts a graph, `parallelize` runs any of our layers or models over the parts, with the
numbers that one process would give; `global_sum` and `global_mean` are for losses and metrics. The
engine is torch.distributed under `torchrun`: gloo on CPUs, NCCL on GPUs. See docs/scaling.md.
"""

from attn_core.distributed import Traffic, traffic
from gat.distributed.parallel import Parallel, global_mean, global_sum, parallelize
from gat.distributed.partition import Partition
from gat.distributed.shard import Shard

__all__ = [
    "Parallel",
    "Partition",
    "Shard",
    "Traffic",
    "global_mean",
    "global_sum",
    "parallelize",
    "traffic",
]
