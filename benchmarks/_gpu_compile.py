"""Compile the Triton kernels for GPUs that need not be there, and read what became of them.

The host side runs on tensors of the CPU; where it would launch a kernel, the kernel is compiled for
the types of its arguments, with the hints that a launch would give. `python -m
benchmarks._gpu_compile 80 90` does so for these GPUs, in a process of its own, in which Triton must
not interpret (`TRITON_INTERPRET=0`), and prints a line of json for each kernel: see `Compiled`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks._report import Report, Table

CAPABILITIES = 80, 90, 120
TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
BITS_OF_INT = 32
OF_GRAPHS, NEW_GRAPH = ("cut_rows", "put_in_order"), "a new graph"


class Compiled(NamedTuple):
    """What became of one kernel.

    Attributes:
        kernel, capability: its name, and the GPU it was compiled for: 90 is sm_90.
        registers, spilled: of each thread; the bytes that did not fit into them.
        wide_loads, loads: how many instructions load 128 bits from memory, and how many load.
    """

    kernel: str
    capability: int
    registers: int | None
    spilled: int | None
    wide_loads: int | None
    loads: int | None


class Compiling:
    """Stands for a kernel; a launch compiles it, once for each set of types and constants."""

    def __init__(
        self, kernel: Any, capabilities: list[int], found: Callable[[Compiled], object]
    ) -> None:
        self.kernel, self.capabilities, self.found = kernel, capabilities, found
        self.arg_names = kernel.arg_names
        self.seen: set[str] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *arguments: Any, **named: Any) -> None:
        from triton import compile as compile_kernel
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        signature, constants, hints = {}, {}, {}
        for at, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            one = type(value) is int and value == 1 and not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or one:
                constants[parameter.name] = value
                signature[parameter.name] = "constexpr"
            elif isinstance(value, Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                hints[at,] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                bits = BITS_OF_INT if -(2**31) <= value < 2**31 else 64
                signature[parameter.name] = f"i{bits}"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    hints[at,] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32"
        case = f"{signature} {constants} {hints} {options}"
        if case in self.seen:
            return
        self.seen.add(case)
        source = ASTSource(self.kernel, signature, constants, hints)
        for capability in self.capabilities:
            target = GPUTarget("cuda", capability, 32)
            compiled = compile_kernel(source, target=target, options=options)
            self.found(Compiled(self.kernel.__name__, capability, *read(compiled.asm["cubin"])))


def read(cubin: bytes) -> tuple[int | None, ...]:
    """Registers, bytes spilled, loads of 128 bits and all loads; None without the tool to look."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None, None, None, None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [str(tool), "-sass", "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, local = (
        int(match[1]) if (match := re.search(pattern, text)) else None
        for pattern in (r"REG:(\d+)", r"LOCAL:(\d+)")
    )
    loads = re.findall(r"\bLDG\.E\S*", text)
    return registers, local, sum(".128" in load for load in loads), len(loads)


@contextmanager
def compiling(capabilities: list[int], found: Callable[[Compiled], object]) -> Iterator[None]:
    """Inside, launches of all kernels compile them instead; tensors of the CPU are served."""
    from attn_core import probe
    from attn_core.backends import triton as kernels
    from attn_core.backends.triton import additive, plan, run, scores, segments

    put = []
    for module in (probe, plan, run, segments, additive, scores):
        for name, kernel in list(vars(module).items()):
            helper = getattr(kernel, "__module__", "").endswith(".pieces")
            if type(kernel).__name__ == "JITFunction" and not helper:
                put.append((module, name, kernel))
                setattr(module, name, Compiling(kernel, capabilities, found))
    try:
        with kernels.on_cpu():
            yield
    finally:
        for module, name, kernel in put:
            setattr(module, name, kernel)


# What layers make of features [N, heads × channels]: name, heads, channels, what else
LAYERS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("GATv2Conv", 8, 8, {}),
    ("GATv2Conv", 8, 16, {}),
    ("GATv2Conv", 4, 40, {}),
    ("GATv2Conv", 8, 64, {}),
    ("GATv2Conv", 8, 16, {"edge_dim": 4}),
    ("GATConv", 8, 8, {"dropout": 0.6}),
    ("TransformerConv", 8, 16, {}),
    ("TransformerConv", 8, 16, {"edge_dim": 4}),
]


def compile_layers(capabilities: list[int], found: Callable[[str, Compiled], object]) -> None:
    """The kernels of one training step of each of LAYERS."""
    import gat
    from attn_core import clear_cache, gpu

    with compiling(capabilities, lambda _: None):
        gpu.failure("cpu", None)  # which compiles a kernel that is no layer's
    pairs = torch.stack([torch.arange(400) % 20, torch.zeros(400, dtype=torch.int64)])
    for layer, heads, channels, more in LAYERS:
        words = [f"{layer} {heads} × {channels}", *(f"{k} {v}" for k, v in more.items())]
        name = ", ".join(words)

        def tell(compiled: Compiled, name: str = name) -> None:
            found(name, compiled)

        with compiling(capabilities, tell):
            size = heads * channels
            conv = getattr(gat, layer)(size, channels, heads=heads, **more)
            x = torch.zeros(20, size, requires_grad=True)
            features = (torch.zeros(400, more["edge_dim"]),) if "edge_dim" in more else ()
            conv(x, pairs, *features).sum().backward()
        clear_cache()


def in_a_process(capabilities: list[int], tiny: bool) -> Iterator[tuple[str, Compiled]]:
    """What `compile_layers` finds, from a process in which Triton compiles; as it comes."""
    command = [sys.executable, "-m", __name__, *map(str, capabilities), *["tiny"][: int(tiny)]]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, compiled = json.loads(line)
            yield name, Compiled(*compiled)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def measure_compiled(report: Report, tiny: bool) -> None:
    """A row for each layer and kernel, with what each GPU of CAPABILITIES makes of it."""
    table = Table(
        "Registers and loads",
        ["layer", "kernel", *(f"sm_{c}: registers" for c in CAPABILITIES),
         *(f"sm_{c}: loads of 128 bits" for c in CAPABILITIES), "loads", "bytes spilled"],
        [],
        "Of one training step of each layer in float32, on a graph with a hub; read from the "
        "compiled kernels, that no GPU has run. A thread of 128 has at most 64 registers where 8 "
        "such programs are to share a multiprocessor. Loads and bytes spilled: the most of the "
        "three.",
    )  # fmt: skip
    with report.grow(table) as add:
        group: list[Compiled] = []
        for name, found in in_a_process(list(CAPABILITIES)[: 1 if tiny else None], tiny):
            group.append(found)
            if found.capability != CAPABILITIES[0 if tiny else -1]:
                continue
            missing = [None] * (len(CAPABILITIES) - len(group))
            registers = [*(f.registers for f in group), *missing]
            wide = [*(f.wide_loads for f in group), *missing]
            if found.kernel in OF_GRAPHS:
                name = NEW_GRAPH
            most = [max(x or 0 for x in field) for field in zip(*group, strict=True)
                    if not isinstance(field[0], str)]  # fmt: skip
            row = [name, found.kernel, *registers, *wide, most[4], most[2]]
            if row not in table.rows:  # a new graph is planned once for each layer
                add(row)
            group = []


if __name__ == "__main__":
    if sys.argv[-1] == "tiny":
        del LAYERS[1:], sys.argv[-1]
    compile_layers(
        [int(capability) for capability in sys.argv[1:]],
        lambda name, compiled: print(json.dumps([name, compiled]), flush=True),
    )
