#!/usr/bin/env python3
"""Whole steps of full-size VITA-1.5, PyTorch beside vivace, on one GPU in one command.

    steps.py --vivace target/release/vivace --json steps.json

PyTorch runs each step eagerly and as one replayed CUDA graph, with each attention backend and BLAS library
that it has, and with --compile also compiled; the best counts. Medians of 20 runs after 3; the error of the
best is that of its outputs against the same model in f32. Then `vivace bench` runs the same items."""

import argparse
import gc
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from needs import need_modules

need_modules("torch")

import torch

import synth
from common import (
    ROOT,
    Clock,
    OutOfTime,
    about,
    blas,
    captured,
    drop_wrong,
    log,
    parsed_with_limits,
    reason,
    relative,
    rest,
    run_engine,
    spread,
    table,
    timed,
    write_json,
)
from model import Cache, Layers, Vita, attention_by

SEED = 11
# The first token of 1 tile, 10 s of sound and 128 text tokens: 509 rows of prompt.
PARTS = ("vision_1", "audio_1000", "prefill_512")
# Seconds for each section.
LIMITS = {
    "decode": 30.0,
    "batch": 15.0,
    "prefill": 35.0,
    "vision": 20.0,
    "audio": 15.0,
    "compile": 240.0,
    "vivace": 60.0,
}


@dataclass
class Item:
    section: str
    name: str
    about: str
    # Attention backends to try; `packed` passes the query heads of a kv head as rows.
    attention: tuple[str, ...]
    # Inputs in a type, and what runs the step on them: returns the outputs that count.
    prepare: Callable[[Vita, torch.dtype], Callable[[Layers, bool], tuple[torch.Tensor, ...]]]


def decode(batch: int, kv_len: int) -> Callable:
    """One token of each of `batch` sequences; `kv_len` rows in the cache, its own included."""

    def prepare(model: Vita, dtype: torch.dtype):
        cache = Cache(model, batch, kv_len, dtype)
        cache.fill(SEED)
        ids = synth.noise(SEED, "tokens", [batch, 1], 0.5, 0.5, device=model.device)
        ids = (ids * model.vocab).long().clamp_(0, model.vocab - 1)
        at = torch.tensor([kv_len - 1], device=model.device)

        def run(layers: Layers, packed: bool):
            h = model.think(model.embed[ids].to(dtype), cache, at, kv_len, layers, packed)
            return layers.greedy(h[:, -1], model.lm_head)

        return run

    return prepare


def prefill(rows: int) -> Callable:
    def prepare(model: Vita, dtype: torch.dtype):
        cache = Cache(model, 1, rows, dtype)
        ids = synth.noise(SEED, "ids", [1, rows], 0.5, 0.5, device=model.device)
        ids = (ids * model.vocab).long().clamp_(0, model.vocab - 1)
        at = torch.arange(rows, device=model.device)

        def run(layers: Layers, packed: bool):
            h = model.think(model.embed[ids].to(dtype), cache, at, rows, layers)
            return layers.greedy(h[:, -1], model.lm_head)

        return run

    return prepare


def vision(tiles: int) -> Callable:
    def prepare(model: Vita, dtype: torch.dtype):
        shape = (tiles, 3, model.tile, model.tile)
        pixels = synth.noise(SEED, "pixel_values", shape, 0, 1, device=model.device).to(dtype)
        return lambda layers, packed: model.see(pixels, layers)[2:]

    return prepare


def audio(frames: int) -> Callable:
    def prepare(model: Vita, dtype: torch.dtype):
        fbank = synth.noise(SEED, "fbank", (1, frames, model.bins), 16, 4, device=model.device)
        return lambda layers, packed: model.hear(fbank, dtype, layers)[2:]

    return prepare


ONE_ROW = ("cudnn", "flash", "cudnn packed", "flash packed")
ITEMS = [
    *(Item("decode", f"decode_{n}", f"one token, {n} rows in the cache", ONE_ROW, decode(1, n))
      for n in (512, 4096, 16384, 32768)),
    *(Item("batch", f"decode_512_batch_{m}", f"a token of each of {m} sequences, 512 rows each", ONE_ROW,
           decode(m, 512))
      for m in (8, 16)),
    *(Item("prefill", f"prefill_{n}", f"prompt of {n} tokens", ("cudnn", "flash"), prefill(n))
      for n in (128, 256, 512, 1024, 2048, 3584)),
    *(Item("vision", f"vision_{n}", f"{n} tiles" if n > 1 else "1 tile", ("cudnn", "flash"), vision(n))
      for n in (1, 4, 13)),
    *(Item("audio", f"audio_{n}", f"{n} frames of sound", ("cudnn", "efficient", "math"), audio(n))
      for n in (300, 1000, 3000)),
]  # fmt: skip
SMALL = {"decode_512", "decode_512_batch_8", "prefill_128", "vision_1", "audio_300"}


@dataclass
class Measured:
    """What PyTorch needs for an item, way by way."""

    ways: dict[str, dict] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def best(self, of: Callable[[str], bool] = lambda way: True) -> str | None:
        ways = [w for w in self.ways if of(w)]
        return min(ways, key=lambda w: self.ways[w]["median_us"], default=None)


class Comparison:
    def __init__(self, model: Vita, flags: argparse.Namespace):
        self.model, self.flags = model, flags
        self.device, self.dtype = model.device, model.dtype
        self.exact: dict[str, tuple[torch.Tensor, ...]] = {}

    def reference(self, item: Item) -> tuple[torch.Tensor, ...] | None:
        """The outputs in f32; kept on the host for the compiled ways that come last."""
        if self.flags.no_errors:
            return None
        if item.name not in self.exact:
            # Rounded inputs, computed with in f32.
            with attention_by("math"):
                out = item.prepare(self.model, torch.float32)(Layers(), False)
            self.exact[item.name] = tuple(t.cpu() for t in out if t.is_floating_point())
        return self.exact[item.name]

    def way(
        self,
        item: Item,
        found: Measured,
        name: str,
        attention: str,
        library: str,
        layers: Layers,
        graph: bool,
    ):
        """Times one way to run `item` and adds it to `found`; a failure is noted, and others go on."""
        backend, _, packed = attention.partition(" ")
        try:
            with attention_by(backend), blas(library):
                step = item.prepare(self.model, self.dtype)

                def run():
                    return step(layers, bool(packed))

                if graph:
                    replay, out = captured(run)
                    rest(self.device)
                    times = timed(replay, self.device)
                    for t in out:
                        t.fill_(float("nan") if t.is_floating_point() else -1)
                    replay()
                else:
                    repeats = 5 if self.device.type == "cpu" else self.flags.eager_repeats
                    rest(self.device)
                    times, out = timed(run, self.device, 2, repeats), run()
            row = found.ways[name] = spread(times)
            exact = self.reference(item)
            if exact is not None:
                have = [t for t in out if t.is_floating_point()]
                row["error"] = max(relative(a.cpu(), b) for a, b in zip(have, exact))
        except OutOfTime:
            raise
        except Exception as e:
            found.errors[name] = reason(e)
            log(f"{item.name}: {name}: {reason(e)}")
        finally:
            step = run = replay = out = None
            gc.collect()
            if self.device.type != "cpu":
                torch.cuda.empty_cache()

    def plain(self, item: Item, found: Measured) -> None:
        if self.device.type == "cpu":
            self.way(item, found, "eager", "auto", "auto", Layers(), graph=False)
            return
        for attention in item.attention:
            self.way(item, found, f"graph, {attention}", attention, "auto", Layers(), graph=True)
        best = found.best()
        # Where nothing else works, SDPA may choose for itself; where it does, the other BLAS gets its chance.
        attention = best.removeprefix("graph, ") if best else "auto"
        library = "cublaslt" if best else "auto"
        tag = ", cublaslt" if best else ""
        self.way(item, found, f"graph, {attention}{tag}", attention, library, Layers(), graph=True)
        self.way(item, found, "eager", "auto", "auto", Layers(), graph=False)

    def compiled(self, item: Item, found: Measured) -> None:
        best = found.best(lambda way: way.startswith("graph"))
        if best is None:
            return
        parts = best.split(", ")
        attention, library = parts[1], parts[2] if len(parts) > 2 else "auto"
        tunings = {"compiled": {}}
        if item.section == "decode":
            # Matrix-vector products by Triton instead of cuBLAS.
            tunings["compiled, tuned"] = {"coordinate_descent_tuning": True}
        for tag, options in tunings.items():
            torch._dynamo.reset()
            layers = Layers().compiled(**options)
            self.way(item, found, f"graph, {attention}, {tag}", attention, library, layers, graph=True)


def result(item: Item, found: Measured) -> dict:
    best = found.best()
    row = {"name": item.name, "what": item.about, "ways": found.ways, "failed": found.errors}
    if best is not None:
        row |= {"library": best} | found.ways[best]
        row["eager_us"] = found.ways.get("eager", {}).get("median_us")
    return row


def first_token(rows: list[dict]) -> dict | None:
    """The sum of its parts."""
    parts = [r for name in PARTS for r in rows if r["name"] == name and "median_us" in r]
    if len(parts) < len(PARTS):
        return None
    total = {k: sum(r[k] for r in parts) for k in ("median_us", "p10_us", "p90_us")}
    eager = [r["eager_us"] for r in parts]
    total["eager_us"] = sum(eager) if None not in eager else None
    what = "first token of 1 tile, 10 s of sound, 128 tokens (library: sum of the parts)"
    return {"name": "first_token", "what": what, "library": " + ".join(PARTS)} | total


def engine(flags: argparse.Namespace, names: list[str]) -> tuple[dict[str, dict], dict | None]:
    """Rows of `vivace bench` by name, and all that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [str(flags.vivace), "bench", "--json", str(path), "--filter", ",".join(names)]
        command += ["--device", flags.vivace_device]
        report, _, failure = run_engine(command, path, flags.limits["vivace"])
    if failure:
        log(failure)
    return {r["name"]: r for r in report["rows"]} if report else {}, report


def ms(us: float | None) -> str:
    return "-" if us is None else f"{us / 1e3:.3f}"


def show(rows: list[dict]) -> str:
    head = ["ms", "vivace", "p10", "p90", "library", "p10", "p90", "ratio", "eager", "error"]
    cells = []
    for r in rows:
        ours, error = r.get("vivace") or {}, r.get("error")
        cells.append(
            [r["name"], *(ms(ours.get(k)) for k in ("median_us", "p10_us", "p90_us"))]
            + [ms(r.get(k)) for k in ("median_us", "p10_us", "p90_us")]
            + [f"{r['ratio']:.2f}" if r.get("ratio") else "-", ms(r.get("eager_us"))]
            + ["-" if error is None else f"{error:.1e}"]
        )
    best = [[r["name"], r.get("library") or "nothing worked"] for r in rows]
    lines = [table(head, cells), "", "ratio: vivace / library. The library's best way:"]
    return "\n".join(lines + [f"  {name:12}  {way}" for name, way in best])


def parsed() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--vivace", type=Path, help="the binary; without it only PyTorch is timed")
    flags.add_argument("--items", help="only items whose name contains one of these, as in decode,vision_1")
    flags.add_argument("--compile", action="store_true", help="torch.compile as well: minutes")
    flags.add_argument("--config", type=Path, default=ROOT / "examples/vita-1.5.json")
    flags.add_argument(
        "--device", default="cuda", help="cpu times eager runs of a few small items, for a look"
    )
    flags.add_argument("--vivace-device", help="default: cuda:0, or cpu with --device cpu")
    flags.add_argument("--json", type=Path, help="write the results to this file, after every item anew")
    flags.add_argument("--eager-repeats", type=int, default=10)
    flags.add_argument("--no-errors", action="store_true", help="leave the f32 references out")
    flags = parsed_with_limits(flags, LIMITS)
    flags.vivace_device = flags.vivace_device or ("cpu" if flags.device == "cpu" else "cuda:0")
    return flags


@torch.no_grad()
def main() -> None:
    flags = parsed()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    parts = [p.strip() for p in flags.items.split(",")] if flags.items else [""]
    items = [i for i in ITEMS if any(p in i.name for p in parts)]
    if flags.device == "cpu":
        items = [i for i in items if i.name in SMALL]
    if not items:
        sys.exit(f"--items {flags.items}: there are {', '.join(i.name for i in ITEMS)}")

    began = time.monotonic()
    model = Vita(json.loads(flags.config.read_text()), flags.device)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    log(f"{time.monotonic() - began:6.1f} s  weights made")
    comparison = Comparison(model, flags)
    found = {i.name: Measured() for i in items}
    report = about(flags)

    def save(extra: list[dict] = ()):
        report["rows"] = [result(i, found[i.name]) for i in items] + list(extra)
        if flags.json:
            write_json(flags.json, report)

    clocks: dict[str, Clock] = {}
    steps = [(i, i.section, comparison.plain) for i in items]
    if flags.compile and flags.device != "cpu":
        steps += [(i, "compile", comparison.compiled) for i in items]
    for item, section, measure in steps:
        if section not in clocks:
            clocks[section] = Clock(flags.limits[section])
        clock = clocks[section]
        try:
            with clock.running():
                measure(item, found[item.name])
        except OutOfTime as e:
            found[item.name].errors[section] = f"{e} ({flags.limits[section]:.0f} s for {section})"
            log(f"{item.name}: {section}: {e}")
        drop_wrong(found[item.name].ways, found[item.name].errors)
        best = found[item.name].best()
        took = found[item.name].ways[best]["median_us"] if best else None
        log(f"{time.monotonic() - began:6.1f} s  {item.name:14} {ms(took):>9} ms  {best or 'nothing worked'}")
        save()

    del model, comparison
    gc.collect()
    if flags.device != "cpu":
        torch.cuda.empty_cache()
    total = first_token(report["rows"])
    names = [i.name for i in items] + (["first_token"] if total else [])
    ours, said = engine(flags, names) if flags.vivace else ({}, None)
    save([total] if total else [])
    report["vivace"] = {k: v for k, v in said.items() if k != "rows"} if said else None
    for row in report["rows"]:
        row["vivace"] = ours.get(row["name"])
        if row["vivace"] and row.get("median_us"):
            row["ratio"] = row["vivace"]["median_us"] / row["median_us"]
    if flags.json:
        write_json(flags.json, report)
    print(f"{report['device']}, torch {report['torch']}, {time.monotonic() - began:.0f} s")
    print(show(report["rows"]))


if __name__ == "__main__":
    main()
