"""Every Triton kernel compiles for sm_90, without a GPU, as its launch function would have it compiled.

Run as a script, in a process where Triton does not interpret, this file calls the launch functions at realistic sizes
with recorders in place of the kernels, compiles what they recorded, and prints one JSON object a line. No kernel has a
matrix product, so no HGMMA instruction is expected in any.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch

SHARED_BYTES = 227 * 1024  # of a block
REGISTERS = 65536  # of a multiprocessor
# Of each form: has it 16-byte loads and stores, and how many barriers the source has between lanes that meet in global
# memory. The interpreter runs lanes one after the other, so nothing else would miss such a barrier.
EXPECTED = {
    "softmax 16384 in place": (True, True, 3),
    "softmax 16384 to bf16": (True, True, 3),
    "softmax 32768 to bf16": (True, True, 3),
    "softmax 131072 in place": (True, True, 3),
    "softmax 131072 to bf16": (True, True, 3),
    "tile statistics, first": (True, False, 2),
    "tile statistics": (True, False, 2),
    "finish": (False, False, 0),
    "tile gradient to bf16": (True, True, 2),
    "pairwise 1 x 768 bf16": (True, True, 2),
    "pairwise 7 x 768 fp32": (True, True, 2),
    "pairwise 32 x 8192 bf16": (True, True, 2),
    "pool mean bf16": (True, True, 0),
    "pool mean fp32": (True, True, 0),
    "pool max bf16": (True, True, 0),
    "pool cls bf16": (True, True, 0),
    "pool backward mean bf16": (True, True, 0),
    "pool backward mean fp32": (True, True, 0),
    "pool backward cls bf16": (True, True, 0),
    "pool backward max bf16": (True, True, 0),
    "embed layernorm 768 fp16": (True, True, 0),
    "residual layernorm 384 fp16": (True, True, 0),
    "residual layernorm 768 bf16": (True, True, 0),
    "residual layernorm 1024 fp32": (True, True, 0),
    "gelu 3072 bf16": (True, True, 0),
    "gelu 3072 fp32": (True, True, 0),
    "topk filter": (True, False, 0),
    "topk filter with lists": (True, False, 0),
    "topk compact": (False, False, 1),  # how far it reads is known to the device alone
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}


class Recorder:
    """Stands in for a kernel: compiles it with the types and alignments of the arguments it is called with."""

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, None

    def __getitem__(self, grid):
        assert all(size > 0 for size in grid)
        return self.compile

    def compile(self, *arguments, num_warps, **constants):
        import triton
        from triton.backends.compiler import GPUTarget

        names = self.kernel.arg_names
        values = dict(zip(names, arguments, strict=False)) | constants
        assert list(values) == names
        signature, constexprs, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = values[parameter.name]
            # As in a launch: None and the integer 1 are constants, and what 16 divides may be accessed by 16 bytes.
            free = parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not free):
                signature[parameter.name], constexprs[(place,)] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + ("i1" if value.dtype == torch.bool else TYPES[value.dtype])
                aligned = value.data_ptr() % 16 == 0
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                aligned = isinstance(value, int) and value % 16 == 0
            if aligned and not free:
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, signature, constexprs, attributes)
        self.compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})


def compile_through(module, kernel, launch):
    """Facts about the kernel of that name in `module` as `launch` compiles it."""
    with mock.patch.object(module, kernel, Recorder(getattr(module, kernel))) as recorder:
        launch()
    compiled = recorder.compiled
    sass, ptx = compiled.asm["sass"], compiled.asm["ptx"]
    registers = max(int(number) for number in re.findall(r"\bR(\d+)\b", sass)) + 1
    return {
        "shared": compiled.metadata.shared,
        "registers": registers * compiled.metadata.num_warps * 32,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        "wide_stores": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "barriers": len(re.findall(r"\b(?:ttg|gpu)\.barrier\b", compiled.asm["ttir"])),
    }


def softmax_forms():
    from ance_fast.ops import softmax_gradient_triton as softmax
    from ance_fast.ops.contrastive_problem import Masks, Problem

    def lists(masked):
        rows, one = torch.arange(3), torch.zeros(16, dtype=torch.int64)
        return Problem((rows, one), Masks((rows, one), (rows, one)) if masked else None)

    def fused(columns, dtype=None, masked=True, scale=1.0):
        logits = torch.empty(2, columns)
        out = None if dtype is None else torch.empty(2, columns, dtype=dtype)
        return lambda: softmax.gradient(logits, scale, lists(masked), kept, torch.empty(2), True, out)

    kernel, kept = "softmax_gradient_kernel", torch.empty(2, 16)
    yield "softmax 16384 in place", softmax, kernel, fused(16384)
    yield "softmax 16384 to bf16", softmax, kernel, fused(16384, torch.bfloat16, scale=torch.ones(1))
    yield "softmax 32768 to bf16", softmax, kernel, fused(32768, torch.bfloat16)
    yield "softmax 131072 in place", softmax, kernel, fused(131072, masked=False)
    yield "softmax 131072 to bf16", softmax, kernel, fused(131072, torch.bfloat16)
    tile, row = torch.empty(2, 65536), torch.empty(2)
    out = torch.empty_like(tile, dtype=torch.bfloat16)
    problem = lists(True)
    statistics = "tile_statistics_kernel"
    for fresh, name in ((True, "tile statistics, first"), (False, "tile statistics")):
        yield (
            name,
            softmax,
            statistics,
            lambda fresh=fresh: softmax.statistics(tile, 1.0, problem, kept, row, row, 4096, fresh),
        )
    yield "finish", softmax, "finish_kernel", lambda: softmax.finish(row, row, problem, kept, row)
    yield (
        "tile gradient to bf16",
        softmax,
        "tile_gradient_kernel",
        lambda: softmax.tile_gradient(tile, 1.0, problem, kept, row, row, 4096, out),
    )


def pairwise_forms():
    from ance_fast.ops import pairwise_loss_triton as pairwise

    def launch(negatives, dim, dtype, masked):
        q, neg = torch.empty(2, dim, dtype=dtype), torch.empty(2, negatives, dim, dtype=dtype)
        mask = torch.ones(2, negatives, dtype=torch.bool) if masked else None
        return lambda: pairwise.compute_pairwise(q, q, neg, 1.0, mask, True)

    yield "pairwise 1 x 768 bf16", pairwise, "pairwise_loss_kernel", launch(1, 768, torch.bfloat16, False)
    yield "pairwise 7 x 768 fp32", pairwise, "pairwise_loss_kernel", launch(7, 768, torch.float32, True)
    yield "pairwise 32 x 8192 bf16", pairwise, "pairwise_loss_kernel", launch(32, 8192, torch.bfloat16, True)


def pool_forms():
    from ance_fast.ops import pool_normalize_triton as pool

    cu, row = torch.zeros(4, dtype=torch.int32), torch.ones(768)

    def forward(mode, norm, dtype, dim=768):
        hidden, parameters = torch.empty(16, dim, dtype=dtype), (row, row) if norm == "layernorm" else (None, None)
        return lambda: pool.compute_pool(hidden, cu, *parameters, mode, norm, 1e-5, dtype, True)

    def backward(mode, norm, dtype, dim=768):
        grad, saved = torch.empty(3, dim, dtype=dtype), torch.empty(3, dim)
        arguments = (cu, row, grad, saved, saved, saved.int(), mode, norm, 1e-5, 16, norm == "layernorm", dtype)
        return lambda: pool.compute_pool_backward(grad, *arguments)

    yield "pool mean bf16", pool, "pool_forward_kernel", forward("mean", "l2", torch.bfloat16)
    yield "pool mean fp32", pool, "pool_forward_kernel", forward("mean", "l2", torch.float32)
    yield "pool max bf16", pool, "pool_forward_kernel", forward("max", "none", torch.bfloat16)
    yield "pool cls bf16", pool, "pool_forward_kernel", forward("cls", "layernorm", torch.bfloat16)
    yield "pool backward mean bf16", pool, "pool_backward_kernel", backward("mean", "l2", torch.bfloat16)
    yield "pool backward mean fp32", pool, "pool_backward_kernel", backward("mean", "l2", torch.float32)
    yield "pool backward cls bf16", pool, "pool_backward_kernel", backward("cls", "layernorm", torch.bfloat16)
    yield "pool backward max bf16", pool, "pool_backward_kernel", backward("max", "l2", torch.bfloat16, 4096)


def encoder_layer_forms():
    from ance_fast.ops import encoder_layer_triton as layer

    def row(dim, dtype):
        return torch.empty(dim, dtype=dtype)

    def embedding(dim, dtype):
        ids, table, out = torch.zeros(9, dtype=torch.int64), torch.empty(16, dim, dtype=dtype), torch.empty(9, dim)
        rows = [row(dim, dtype) for _ in range(3)]
        return lambda: layer.embed_layernorm(ids, ids, table, table, *rows, 1e-12, out.to(dtype))

    def residual(dim, dtype):
        x, one = torch.empty(9, dim, dtype=dtype), row(dim, dtype)
        return lambda: layer.bias_residual_layernorm(x, one, x, one, one, 1e-12)

    def gelu(dim, dtype):
        return lambda: layer.bias_gelu(torch.empty(9, dim, dtype=dtype), row(dim, dtype))

    half, narrow, single = torch.float16, torch.bfloat16, torch.float32
    yield "embed layernorm 768 fp16", layer, "embed_layernorm_kernel", embedding(768, half)
    yield "residual layernorm 384 fp16", layer, "bias_residual_layernorm_kernel", residual(384, half)
    yield "residual layernorm 768 bf16", layer, "bias_residual_layernorm_kernel", residual(768, narrow)
    yield "residual layernorm 1024 fp32", layer, "bias_residual_layernorm_kernel", residual(1024, single)
    yield "gelu 3072 bf16", layer, "bias_gelu_kernel", gelu(3072, narrow)
    yield "gelu 3072 fp32", layer, "bias_gelu_kernel", gelu(3072, single)


def topk_forms():
    from ance_fast.ops import topk_inner_product_triton as topk
    from ance_fast.ops.topk_problem import Problem

    def collector(listed):
        lists = (torch.tensor([0, 1, 1]), torch.zeros(16, dtype=torch.int64)) if listed else None
        return topk.Collector(Problem(torch.empty(2, 16), 200, torch.ones(32, dtype=torch.bool), lists))

    def filtered(listed):
        return lambda: collector(listed)._filter(torch.empty(2, 16384), 0, slice(0, 2))

    yield "topk filter", topk, "filter_kernel", filtered(False)
    yield "topk filter with lists", topk, "filter_kernel", filtered(True)
    yield "topk compact", topk, "compact_kernel", lambda: collector(False)._compact(slice(0, 2), 1024)


def forms():
    yield from softmax_forms()
    yield from pairwise_forms()
    yield from pool_forms()
    yield from encoder_layer_forms()
    yield from topk_forms()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What was found out about each form, by name."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {fact.pop("name"): fact for fact in map(json.loads, done.stdout.splitlines())}


def test_every_form_is_compiled(compiled):
    assert list(compiled) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_block_fits_the_multiprocessor_without_spilling(compiled, name):
    found = compiled[name]
    assert found["spills"] == 0
    assert found["registers"] <= REGISTERS
    assert found["shared"] <= SHARED_BYTES


@pytest.mark.parametrize("name", EXPECTED)
def test_memory_is_accessed_by_16_bytes(compiled, name):
    found = compiled[name]
    assert (found["wide_loads"] > 0, found["wide_stores"] > 0) == EXPECTED[name][:2]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_barrier_stands_wherever_lanes_meet_in_global_memory(compiled, name):
    assert compiled[name]["barriers"] == EXPECTED[name][2]


if __name__ == "__main__":
    for name, module, kernel, launch in forms():
        print(json.dumps({"name": name, **compile_through(module, kernel, launch)}), flush=True)
