#!/usr/bin/env python3
"""Single kernels at the model's shapes, cuBLAS and cuDNN beside vivace, on one GPU in one command.

    kernels.py --vivace-kernels target/release/deps/kernels-… --json kernels.json

A kernel is timed as `cargo bench --bench kernels` times it: as a CUDA graph of many nodes that take turns on
copies of their tensors, which together exceed the L2. Each case is tried in every way that the library knows,
and the best counts. Rows are matched by name; the error of either side is against f32, the library's on
poisoned outputs."""

import argparse
import gc
import math
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from needs import need_modules

need_modules("torch")

import torch
import torch.nn.functional as F
from torch import Tensor

from common import (
    Clock,
    OutOfTime,
    about,
    blas,
    captured,
    drop_wrong,
    geometric_mean,
    log,
    parsed_with_limits,
    reason,
    relative,
    run_engine,
    spread,
    table,
    timed,
    write_json,
)
from model import attention_by

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# How often a case is copied and repeated: as in benches/kernels.rs.
COLD_BYTES, ROOM_BYTES, COPIES = 192 << 20, 6 << 30, (4, 256)
GRAPH_US, KERNEL_US, ROUNDS = 400.0, 2.0, 8
BYTES_PER_S, FLOPS_PER_S = 4.58e12, 8e14
CPU_FLOPS, CPU_BYTES = 2e9, 256 << 20
# Seconds for each group of cases, and for the engine's benchmark.
LIMITS = {
    "matvec": 25.0,
    "gemm": 40.0,
    "fused": 25.0,
    "attention": 35.0,
    "conv": 15.0,
    "norm": 10.0,
    "vivace": 75.0,
}

Tensors = tuple[Tensor, ...]


@dataclass
class Way:
    """One way to have a library compute a case."""

    run: Callable[..., Tensor | Tensors]
    blas: str = "auto"
    attention: str = "auto"


@dataclass
class Case:
    section: str
    # What its speed-up is averaged with.
    group: str
    # As in `benches/kernels`.
    name: str
    # Shapes of the inputs and what their values are multiplied by; 0 for a norm's weight, about 1.
    shapes: list[tuple[tuple[int, ...], float]]
    ways: dict[str, Way]
    # The same in f32.
    exact: Callable[..., Tensor | Tensors]
    flops: float
    # Puts the inputs into the form that the library wants, once.
    form: Callable[[Tensors], Tensors] = field(default=lambda ins: ins)


# Matrix products.

TEXT = [("qkv", 4608, 3584), ("o", 3584, 3584), ("gate_up", 37888, 3584), ("down", 3584, 18944)]
VISION = [("vit_qkv", 3072, 1024), ("vit_proj", 1024, 1024), ("vit_fc1", 4096, 1024), ("vit_fc2", 1024, 4096)]
AUDIO = [
    ("whale_qkv", 3072, 1024),
    ("whale_out", 1024, 1024),
    ("whale_w1", 4096, 1024),
    ("whale_w2", 1024, 4096),
]
PROJECTOR = [("mm_0", 3584, 4096), ("mm_2", 3584, 3584)]


def product(section: str, group: str, name: str, t: int, n: int, k: int, f32_out: bool = False) -> Case:
    ways = {
        "cublas": Way(lambda x, w: F.linear(x, w), blas="cublas"),
        "cublaslt": Way(lambda x, w: F.linear(x, w), blas="cublaslt"),
    }
    if f32_out:
        ways["f32 out"] = Way(lambda x, w: torch.mm(x, w.t(), out_dtype=torch.float32))
    shapes = [((t, k), 1.0), ((n, k), k**-0.5)]
    return Case(section, group, f"Linear/{name}_t{t}", shapes, ways, F.linear, 2.0 * t * n * k)


if triton is not None:

    @triton.jit
    def swiglu_kernel(x, y, width, BLOCK: tl.constexpr):
        row = tl.program_id(1).to(tl.int64)
        col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        gate = tl.load(x + row * 2 * width + col, mask=col < width, other=0.0).to(tl.float32)
        up = tl.load(x + row * 2 * width + width + col, mask=col < width, other=0.0).to(tl.float32)
        tl.store(
            y + row * width + col, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=col < width
        )


    @triton.jit
    def rope_kernel(x, cos, sin, q, kv, rows, H: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr):
        row, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HALF)
        at = x + (row * (H + 2 * G) + head) * 2 * HALF + i
        a, b = tl.load(at).to(tl.float32), tl.load(at + HALF).to(tl.float32)
        c, s = tl.load(cos + row * HALF + i).to(tl.float32), tl.load(sin + row * HALF + i).to(tl.float32)
        turned = head < H + G
        first, second = tl.where(turned, a * c - b * s, a), tl.where(turned, b * c + a * s, b)
        first, second = first.to(q.dtype.element_ty), second.to(q.dtype.element_ty)
        is_q = i < HALF * (head < H).to(tl.int32)
        to_q = q + (row * H + head) * 2 * HALF + i
        to_kv = kv + ((head - H) * rows + row) * 2 * HALF + i
        tl.store(to_q, first, mask=is_q)
        tl.store(to_q + HALF, second, mask=is_q)
        tl.store(to_kv, first, mask=is_q == 0)
        tl.store(to_kv + HALF, second, mask=is_q == 0)


HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128


def rope_in_one(x: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
    """q turned, and k turned and v as rows of a cache, as one kernel."""
    rows = x.shape[0]
    q = torch.empty(rows, HEADS, HEAD_DIM, dtype=x.dtype, device=x.device)
    kv = torch.empty(2, KV_HEADS, rows, HEAD_DIM, dtype=x.dtype, device=x.device)
    rope_kernel[(rows, HEADS + 2 * KV_HEADS)](
        x, cos, sin, q, kv, rows, H=HEADS, G=KV_HEADS, HALF=HEAD_DIM // 2, num_warps=1
    )
    return q, kv


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
    x = x.unflatten(-1, (HEADS + 2 * KV_HEADS, HEAD_DIM))
    turned, v = x[:, : HEADS + KV_HEADS], x[:, HEADS + KV_HEADS :]
    a, b = turned.chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    turned = torch.cat([a * c - b * s, b * c + a * s], -1)
    kv = torch.stack([turned[:, HEADS:].transpose(0, 1), v.transpose(0, 1)])
    return turned[:, :HEADS].contiguous(), kv


def qkv_rope(t: int, pos: int) -> Case:
    """q, k and v of many rows down to the cache: the library's product, then a separate kernel."""
    n, k = (HEADS + 2 * KV_HEADS) * HEAD_DIM, 3584
    angles = ((t, HEAD_DIM // 2), 1.0)
    inputs, ways = [((t, k), 1.0), ((n, k), k**-0.5), ((n,), 0.1), angles, angles], {}
    tails = {"turned, stacked": rope} | ({"triton": rope_in_one} if triton else {})
    for library in ("cublas", "cublaslt"):
        for tag, tail in tails.items():
            ways[f"{library} + {tag}"] = Way(
                lambda x, w, b, c, s, tail=tail: tail(F.linear(x, w, b), c, s), blas=library
            )

    def exact(x, w, b, c, s):
        return rope(F.linear(x, w, b), c, s)

    name = f"LinearRope/t{t}_v{t}_h{HEADS}_g{KV_HEADS}_d{HEAD_DIM}_k{k}_at{pos}"
    return Case("fused", "fused", name, inputs, ways, exact, 2.0 * t * n * k)


def swiglu_in_one(x: Tensor) -> Tensor:
    """silu(gate) · up as one kernel, which PyTorch alone does not have."""
    rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    swiglu_kernel[(triton.cdiv(width, 1024), rows)](x, y, width, BLOCK=1024)
    return y


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def fused(group: str, name: str, t: int, n: int, k: int, kind: str) -> Case:
    """A product and what follows it: the library's product, then a separate elementwise kernel."""
    inputs, ways = [((t, k), 1.0), ((n, k), k**-0.5)], {}
    if kind == "swiglu":

        def exact(x, w):
            return swiglu(F.linear(x, w))

        tails = {"silu, mul": swiglu} | ({"triton": swiglu_in_one} if triton else {})
        for library in ("cublas", "cublaslt"):
            for tag, tail in tails.items():
                ways[f"{library} + {tag}"] = Way(lambda x, w, tail=tail: tail(F.linear(x, w)), blas=library)
    elif kind == "residual":
        inputs.append(((t, n), 1.0))

        def exact(x, w, r):
            return F.linear(x, w) + r

        for library in ("cublas", "cublaslt"):
            ways[f"{library} + add"] = Way(lambda x, w, r: F.linear(x, w).add_(r), blas=library)
            ways[f"{library}, beta = 1"] = Way(lambda x, w, r: torch.addmm(r, x, w.t()), blas=library)
    elif kind == "gelu":
        inputs.append(((n,), 0.1))

        def exact(x, w, b):
            return F.gelu(F.linear(x, w, b))

        ways["bias epilogue + gelu"] = Way(exact)
    else:
        inputs += [((n,), 0.1), ((n,), 0.3), ((t, n), 1.0)]

        def exact(x, w, b, s, r):
            return torch.addcmul(r, F.linear(x, w, b), s)

        ways["bias epilogue + addcmul"] = Way(exact)
    return Case("fused", group, f"LinearFused/{name}_t{t}", inputs, ways, exact, 2.0 * t * n * k)


def products() -> list[Case]:
    all = []
    for t in (1, 2, 4, 8, 16):
        group = "one row" if t == 1 else "2 to 16 rows"
        all += [product("matvec", group, name, t, n, k) for name, n, k in TEXT]
        all.append(product("matvec", group, "lm_head", t, 151665, 3584, True))
    for t in (128, 256, 512, 1024, 2048, 4096):
        all += [product("gemm", "gemm, text", name, t, n, k) for name, n, k in TEXT]
    for t in (1025, 4100, 13325):
        all += [product("gemm", "gemm, vision", name, t, n, k) for name, n, k in VISION]
    for t in (256, 1024, 3328):
        all += [product("gemm", "gemm, projector", name, t, n, k) for name, n, k in PROJECTOR]
    for t in (249, 749):
        all += [product("gemm", "gemm, audio", name, t, n, k) for name, n, k in AUDIO]
    all.append(product("gemm", "gemm, audio", "whale_sub", 249, 1024, 19456))
    all += [product("gemm", "gemm, 64 rows", name, 64, n, k) for name, n, k in TEXT]
    for t in (1, 128, 512, 2048):
        group = "fused, one row" if t == 1 else "fused"
        all.append(fused(group, "gate_up", t, 37888, 3584, "swiglu"))
        all.append(fused(group, "down", t, 3584, 18944, "residual"))
        all.append(fused(group, "o", t, 3584, 3584, "residual"))
    all += [qkv_rope(128, 500), qkv_rope(512, 0), qkv_rope(2048, 0)]
    for t in (1025, 4100, 13325):
        all.append(fused("fused", "vit_fc1", t, 4096, 1024, "gelu"))
        all.append(fused("fused", "vit_fc2", t, 1024, 4096, "scale_residual"))
        all.append(fused("fused", "vit_proj", t, 1024, 1024, "scale_residual"))
    return all


# Attention.


def exactly(q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None = None) -> Tensor:
    """`[B, H, T, D]` in f32, some rows at a time; a causal row sees the keys up to its own from the end."""
    (b, h, t, d), g, s = q.shape, k.shape[1], k.shape[2]
    out = torch.empty_like(q)
    column = torch.arange(s, device=q.device)
    step = max(1, (1 << 28) // (b * (h // g) * s))
    for i in range(g):
        heads = slice(i * (h // g), (i + 1) * (h // g))
        for at in range(0, t, step):
            rows = slice(at, min(at + step, t))
            scores = q[:, heads, rows] @ k[:, i : i + 1].transpose(-1, -2) * d**-0.5
            if bias is not None:
                scores += bias[heads, None]
            if causal:
                last = torch.arange(rows.start, rows.stop, device=q.device) + s - t
                scores.masked_fill_(column > last[:, None], -math.inf)
            out[:, heads, rows] = scores.softmax(-1) @ v[:, i : i + 1]
    return out


def cached(group: str, t: int, pos: int, bucket: int) -> Case:
    """28 query heads over 4 kv heads of 128; `t` rows after `pos`."""
    h, g, d, s = 28, 4, 128, pos + t

    def form(ins: Tensors) -> Tensors:
        q, cache = ins
        form = q.view(1, t, h, d).transpose(1, 2), cache[0][None], cache[1][None]
        if t == 1 or pos == 0:
            return form
        rows, columns = torch.arange(pos, s, device=q.device), torch.arange(s, device=q.device)
        mask = torch.zeros(1, 1, t, s, dtype=q.dtype, device=q.device)
        return *form, mask.masked_fill_(columns > rows[:, None], -math.inf)

    def sdpa(**options):
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)

    def packed(q, k, v):
        # For one row the query heads of a kv head are rows of one head.
        return F.scaled_dot_product_attention(q.reshape(1, g, h // g, d), k, v).view(1, h, 1, d)

    def lower_right(q, k, v, _):
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(t, s)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def masked(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    if t == 1:
        ways = {name: Way(sdpa(), attention=name) for name in ("cudnn", "flash")}
        ways |= {f"{name} packed": Way(packed, attention=name) for name in ("cudnn", "flash")}
    elif pos == 0:
        ways = {name: Way(sdpa(is_causal=True), attention=name) for name in ("cudnn", "flash")}
    else:
        ways = {
            "flash, lower right": Way(lower_right, attention="flash"),
            "cudnn, mask": Way(masked, attention="cudnn"),
        }
    name = f"Attention/cache_t{t}_pos{pos}_valid{t}_bucket{bucket}_causal_h{h}_g{g}_d{d}"
    shapes = [((t, h * d), 1.0), ((2, g, s, d), 1.0)]
    pairs = t * pos + t * (t + 1) / 2
    flops = 4.0 * h * d * pairs

    def exact(q, k, v, *_):
        return exactly(q, k, v, True)

    return Case("attention", group, name, shapes, ways, exact, flops, form=form)


def whole(group: str, batch: int, t: int, bias: bool) -> Case:
    """Full attention of 16 heads of 64 on packed q, k and v."""
    h, d = 16, 64

    def form(ins: Tensors) -> Tensors:
        q, k, v = (y.transpose(1, 2) for y in ins[0].view(batch, t, 3, h, d).unbind(2))
        return q, k, v, *ins[1:]

    def sdpa(q, k, v, *bias):
        mask = bias[0][None, :, None].expand(batch, h, t, t) if bias else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    names = ("cudnn", "efficient", "math") if bias else ("cudnn", "flash")
    ways = {name: Way(sdpa, attention=name) for name in names}
    name = f"Attention/packed_b{batch}_t{t}_full_h{h}_g{h}_d{d}" + ("_bias" if bias else "")
    shapes = [((batch * t, 3 * h * d), 1.0)] + ([((h, t), 1.0)] if bias else [])

    def exact(q, k, v, *bias):
        return exactly(q, k, v, False, bias[0] if bias else None)

    return Case("attention", group, name, shapes, ways, exact, 4.0 * batch * h * d * t * t, form=form)


def attentions() -> list[Case]:
    all = [cached("attention, causal", t, 0, t) for t in (1024, 2048, 4096, 8192, 16384)]
    all += [cached("attention, short causal", t, 0, t) for t in (128, 512)]
    all += [cached("attention, behind a cache", t, pos, 2048) for t, pos in ((256, 1792), (4, 2044))]
    all += [cached("attention, decode", 1, n - 1, n) for n in (512, 2048, 8192, 32768)]
    all += [whole("attention, vision", tiles, 1025, False) for tiles in (1, 4, 13)]
    all += [whole("attention, audio", 1, t, True) for t in (249, 749)]
    return all


# Convolutions and norms.


def conv2d(height: int, width: int, c: int) -> Case:
    n = 1024

    def form(ins: Tensors, memory=torch.channels_last) -> Tensors:
        return *(t.contiguous(memory_format=memory) for t in ins[:2]), ins[2]

    def plain(x, w, b):
        return F.relu(F.conv2d(x, w, b, stride=2), inplace=True)

    def one(x, w, b):
        return torch.cudnn_convolution_relu(x, w, b, (2, 2), (0, 0), (1, 1), 1)

    def first(x, w, b):
        return plain(x.contiguous(), w.contiguous(), b)

    ways = {"nhwc": Way(plain), "nhwc, fused": Way(one)}
    if c == 1:
        # With one channel the layouts are the same in memory; let cuDNN see either.
        ways["nchw"] = Way(first)
    rows, cols = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    shapes = [((1, c, height, width), 1.0), ((n, c, 3, 3), (9 * c) ** -0.5), ((n,), 0.1)]
    name = f"Conv2d/h{height}_w{width}_c{c}_n{n}"
    return Case("conv", "conv", name, shapes, ways, plain, 2.0 * rows * cols * n * 9 * c, form=form)


def conv1d(t: int) -> Case:
    c, n, taps = 1024, 2048, 5

    def form(ins: Tensors) -> Tensors:
        x, w, b = ins
        return x.view(1, t, c), w.unsqueeze(2).contiguous(memory_format=torch.channels_last), b

    def run(x, w, b):
        x = F.pad(x, (0, 0, 0, taps - 1)).transpose(1, 2).unsqueeze(2)
        return F.conv2d(x, w, b, stride=(1, 2))

    shapes = [((t, c), 1.0), ((n, c, taps), (taps * c) ** -0.5), ((n,), 0.1)]
    flops = 2.0 * ((t - 1) // 2 + 1) * n * taps * c
    return Case("conv", "conv", f"Conv1d/t{t}_c{c}_n{n}", shapes, {"nhwc": Way(run)}, run, flops, form=form)


def norm(name: str, t: int, c: int) -> Case:
    weights = [((c,), 0.0)] + ([((c,), 0.1)] if "Layer" in name else [])
    added = name.startswith("Add")

    def run(x, *rest):
        if added:
            x, rest = x + rest[0], rest[1:]
        if "Layer" in name:
            y = F.layer_norm(x, (c,), *rest, 1e-6)
        else:
            y = F.rms_norm(x, (c,), *rest, 1e-6)
        return (x, y) if added else y

    shapes = [((t, c), 1.0)] * (2 if added else 1) + weights
    return Case("norm", "norm", f"{name}/t{t}_c{c}", shapes, {"pytorch": Way(run)}, run, 8.0 * t * c)


def others() -> list[Case]:
    convs = [conv2d(t, 80, 1) for t in (300, 1000, 3000)]
    convs += [conv2d((t - 3) // 2 + 1, 39, 1024) for t in (300, 1000, 3000)]
    convs += [conv1d(t) for t in (249, 749)]
    norms = [norm(name, t, 3584) for name in ("RmsNorm", "AddRmsNorm") for t in (1, 512, 4096)]
    norms += [norm(name, t, 1024) for name in ("LayerNorm", "AddLayerNorm") for t in (1025, 13325)]
    return convs + norms


# Measuring.


def outputs(out: Tensor | Tensors) -> Tensors:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def nbytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copies_and_rounds(case: Case, ins: Tensors, outs: Tensors) -> tuple[int, int]:
    moved = nbytes(ins) + nbytes(outs)
    cold = min(max(math.ceil(COLD_BYTES / moved), COPIES[0]), COPIES[1])
    copies = max(1, min(cold, ROOM_BYTES // moved))
    node_us = max(moved / BYTES_PER_S * 1e6, case.flops / FLOPS_PER_S * 1e6, KERNEL_US)
    return copies, int(min(max(math.ceil(GRAPH_US / (copies * node_us)), 1), ROUNDS))


class Comparison:
    def __init__(self, flags: argparse.Namespace):
        self.device, self.dtype = torch.device(flags.device), getattr(torch, flags.dtype)

    def inputs(self, case: Case) -> Tensors:
        g = torch.Generator(self.device).manual_seed(11)

        def made(shape, scale):
            x = torch.randn(shape, generator=g, device=self.device, dtype=torch.float32)
            return (x.mul_(scale) if scale else x.mul_(0.1).add_(1)).to(self.dtype)

        return tuple(made(shape, scale) for shape, scale in case.shapes)

    def measure(self, case: Case, row: dict) -> None:
        """Fills `row`; the ways that fail are noted in it."""
        made = self.inputs(case)
        ins = case.form(made)
        ways, failed = row.setdefault("ways", {}), row.setdefault("failed", {})
        exact = None
        try:
            with attention_by("math"):
                exact = outputs(case.exact(*(t.float() for t in ins)))
        except torch.OutOfMemoryError as e:
            failed["f32"] = reason(e)
        on_cpu = self.device.type == "cpu"
        todo = {"cpu": Way(next(iter(case.ways.values())).run)} if on_cpu else case.ways
        sets = None
        for name, way in todo.items():
            run = replay = out = None
            try:
                with blas(way.blas), attention_by(way.attention):
                    first = outputs(way.run(*ins))
                    copies, rounds = (1, 1) if on_cpu else copies_and_rounds(case, made, first)
                    row["copies"], row["rounds"] = copies, rounds
                    if sets is None:
                        sets = [ins] + [case.form(tuple(t.clone() for t in made)) for _ in range(copies - 1)]
                    del first

                    def run():
                        # All outputs stay, so that each node writes memory of its own.
                        return [outputs(way.run(*s)) for _ in range(rounds) for s in sets]

                    if on_cpu:
                        times, out = timed(run, self.device, 1, 3), run()
                    else:
                        replay, out = captured(run, 1)
                        times = timed(replay, self.device)
                        for t in out[0]:
                            t.fill_(float("nan"))
                        replay()
                ways[name] = spread(times, copies * rounds)
                if exact is not None:
                    ways[name]["error"] = max(relative(a, b) for a, b in zip(out[0], exact))
            except OutOfTime:
                raise
            except Exception as e:
                failed[name] = reason(e)
                log(f"{case.name}: {name}: {reason(e)}")
            finally:
                del run, replay, out


def engine(flags: argparse.Namespace, cases: list[Case]) -> tuple[dict[str, dict], dict | None]:
    """Rows of `benches/kernels` by name, and all that it wrote. Of a run cut off, the times it had
    printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.json"
        names = flags.filter or ",".join(sorted({c.name.split("/")[0] + "/" for c in cases}))
        command = [
            str(flags.vivace_kernels),
            "--json",
            str(path),
            "--filter",
            names,
            "--dtype",
            DTYPES[flags.dtype],
        ]
        command += ["--device", flags.vivace_device]
        report, said, failure = run_engine(command, path, flags.limits["vivace"])
    if failure:
        log(failure)
    if report:
        return {r["name"]: r for r in report["rows"]}, report
    printed = re.findall(r"^(\S+/\S+) +([0-9.]+) us$", said, re.MULTILINE)
    return {name: {"name": name, "median_us": float(us)} for name, us in printed}, None


DTYPES = {"bfloat16": "bf16", "float16": "f16"}


def show(rows: list[dict]) -> str:
    def us(row: dict, key: str) -> str:
        return f"{row[key]:.2f}" if row.get(key) is not None else "-"

    def error(row: dict) -> str:
        return f"{row['error']:.1e}" if row.get("error") is not None else "-"

    head = [
        "us",
        "vivace",
        "p10",
        "p90",
        "error",
        "library",
        "p10",
        "p90",
        "error",
        "speed-up",
        "library's best way",
    ]
    keys = ("median_us", "p10_us", "p90_us")
    cells = []
    for r in rows:
        ours = r.get("vivace") or {}
        cells.append(
            [r["name"], *(us(ours, k) for k in keys), error(ours), *(us(r, k) for k in keys), error(r)]
            + [f"{r['speed_up']:.2f}" if r.get("speed_up") else "-", r.get("library") or "nothing worked"]
        )
    return table(head, cells)


def groups(rows: list[dict]) -> list[dict]:
    found = []
    for group in dict.fromkeys(r["group"] for r in rows):
        both = [r for r in rows if r["group"] == group and r.get("speed_up")]
        if both:
            worst = min(both, key=lambda r: r["speed_up"])
            mean = geometric_mean([r["speed_up"] for r in both])
            found.append(
                {"group": group, "cases": len(both), "geometric_mean": mean}
                | {"least": worst["speed_up"], "least_name": worst["name"]}
            )
    return found


def subsampling(rows: list[dict]) -> str:
    """Both convolutions of the audio encoder's subsampling together."""
    by_name, lines = {r["name"]: r for r in rows}, []
    for t in (300, 1000, 3000):
        names = f"Conv2d/h{t}_w80_c1_n1024", f"Conv2d/h{(t - 3) // 2 + 1}_w39_c1024_n1024"
        both = [by_name[n] for n in names if by_name.get(n, {}).get("median_us")]
        if len(both) == 2:
            ours = [r["vivace"]["median_us"] for r in both if r.get("vivace")]
            said = f"{sum(ours):.1f} us" if len(ours) == 2 else "-"
            library = sum(r["median_us"] for r in both)
            lines.append(f"both convolutions, {t} frames: vivace {said}, library {library:.1f} us")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--vivace-kernels", type=Path, help="the bench binary; without it only the library is timed"
    )
    flags.add_argument(
        "--filter", help="only cases whose name contains one of these, in any case; for both sides"
    )
    flags.add_argument("--device", default="cuda", help="cpu times the small cases once, for a look")
    flags.add_argument("--vivace-device", help="default: cuda:0, or cpu with --device cpu")
    flags.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    flags.add_argument("--json", type=Path, help="write the results to this file, after every case anew")
    flags.add_argument("--list", action="store_true", help="only print the names")
    flags = parsed_with_limits(flags, LIMITS)
    flags.vivace_device = flags.vivace_device or ("cpu" if flags.device == "cpu" else "cuda:0")
    return flags


@torch.no_grad()
def main() -> None:
    flags = parsed()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    parts = [p.strip().lower() for p in flags.filter.split(",")] if flags.filter else [""]
    cases = [c for c in products() + attentions() + others() if any(p in c.name.lower() for p in parts)]
    if flags.device == "cpu":
        size = dict((c.name, sum(2 * math.prod(s) for s, _ in c.shapes)) for c in cases)
        cases = [c for c in cases if c.flops < CPU_FLOPS and size[c.name] < CPU_BYTES]
    if flags.list:
        print("\n".join(c.name for c in cases))
        return
    if not cases:
        sys.exit(f"--filter {flags.filter}: no case has that in its name; --list shows all")

    began = time.monotonic()
    comparison, clocks = Comparison(flags), {}
    report = about(flags)
    rows = report["rows"] = [{"name": c.name, "group": c.group} for c in cases]
    for case, row in zip(cases, rows):
        limit = flags.limits[case.section]
        clock = clocks.setdefault(case.section, Clock(limit))
        try:
            with clock.running():
                comparison.measure(case, row)
        except OutOfTime as e:
            row.setdefault("failed", {})[case.section] = f"{e} ({limit:.0f} s for {case.section})"
        except Exception as e:
            row.setdefault("failed", {})["case"] = reason(e)
            log(f"{case.name}: {reason(e)}")
        gc.collect()
        if flags.device != "cpu":
            torch.cuda.empty_cache()
        ways = row.get("ways") or {}
        drop_wrong(ways, row.setdefault("failed", {}))
        best = min(ways, key=lambda w: ways[w]["median_us"], default=None)
        row |= {"library": best} | ways[best] if best else {}
        took = f"{row['median_us']:.2f} us  {best}" if best else "nothing worked"
        log(f"{time.monotonic() - began:6.1f} s  {case.name:64} {took}")
        if flags.json:
            write_json(flags.json, report)

    ours, said = engine(flags, cases) if flags.vivace_kernels else ({}, None)
    report["vivace"] = {k: v for k, v in said.items() if k != "rows"} if said else None
    for row in rows:
        row["vivace"] = ours.get(row["name"])
        if row["vivace"] and row.get("median_us"):
            row["speed_up"] = row["median_us"] / row["vivace"]["median_us"]
    report["groups"] = groups(rows)
    if flags.json:
        write_json(flags.json, report)
    print(f"{report['device']}, torch {report['torch']}, {time.monotonic() - began:.0f} s")
    print(show(rows))
    print("\nspeed-up: library / vivace, above 1 where vivace is faster")
    cells = [
        [g["group"], str(g["cases"]), f"{g['geometric_mean']:.2f}", f"{g['least']:.2f}", g["least_name"]]
        for g in report["groups"]
    ]
    print(table(["group", "cases", "geometric mean", "least", "at"], cells))
    print(subsampling(rows))


if __name__ == "__main__":
    main()
