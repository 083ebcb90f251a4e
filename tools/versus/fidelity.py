#!/usr/bin/env python3
"""Is the engine as near to the truth as PyTorch is? Both against PyTorch in f32, at full size.

    fidelity.py --vivace target/release/vivace --json fidelity.json

PyTorch runs a prompt with pictures and sound and a written one in f32, and every step of the greedy answers
that follow; then the same in bf16, led by the f32 tokens. What f32 gave is written as a golden file, which
`vivace verify` compares itself with. An error may be 1.1 times that of PyTorch's bf16."""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from needs import need_modules

need_modules("torch", "safetensors")

import torch
from safetensors.torch import save_file
from torch import Tensor

import synth
from common import ROOT, about, log, table, write_json
from model import IMAGE, SOUND, Cache, Vita, attention_by, rows_of_sound

ALLOWED = 1.1
# What is judged; everything else is shown.
JUDGED = ("vision.projected", "audio.embeds", "lm.logits_tail", "lm.logits_forced", "lm.logits_steps")


class Run:
    """One case in one type. `tensors` has the keys of a golden file, and `lm.logits_forced` `[steps,
    vocabulary]`: the logits that chose each token."""

    def __init__(self, model: Vita, case: dict, dtype: torch.dtype, led_by: Tensor | None = None):
        seed, name, device = model.cfg.get("seed", 0), case["name"], model.device
        found: dict[str, Tensor] = {}
        # bf16 positions would be an error of their own: the yardstick is PyTorch used with care.
        options = {"rope_dtype": torch.float32}
        media, per_tile, of_sound = [torch.zeros(1, model.width, dtype=dtype, device=device)], 0, 0
        if case["images"]:
            shape = (case["images"], 3, model.tile, model.tile)
            pixels = synth.noise(seed, f"{name}.pixel_values", shape, 0, 1, device=device)
            hidden, features, rows = model.see(pixels.to(dtype))
            found |= {
                "vision.last_hidden_state": hidden,
                "vision.features": features,
                "vision.projected": rows,
            }
            per_tile = rows.shape[1]
            media.append(rows.flatten(0, 1))
        if case["audio_frames"]:
            fbank = synth.noise(seed, f"{name}.fbank", (1, case["audio_frames"], 80), 16, 4, device=device)
            sub, enc, rows = model.hear(fbank, dtype)
            found |= {"audio.subsampled": sub, "audio.encoder": enc, "audio.embeds": rows}
            of_sound = rows_of_sound(case["audio_frames"])
            media.append(rows[0, :of_sound])
        ids, row = [], 1  # row 0 of media stands for none
        for i in case["input_ids"]:
            n = {IMAGE: per_tile, SOUND: of_sound}.get(i)
            ids += [i] if n is None else range(-1 - row, -1 - row - n, -1)
            row += n or 0

        steps, t = case["new_tokens"], len(ids)
        cache = Cache(model, 1, t + steps, dtype)
        x = model.merge(torch.tensor([ids], device=device), torch.cat(media))
        hidden = model.think(x, cache, torch.arange(t, device=device), t, **options)
        logits = self.logits(model, hidden[0])
        found |= {"inputs_embeds": x[0], "lm.hidden_last": hidden[0, -1], "lm.logits_tail": logits[-8:]}
        found["lm.argmax_all"] = logits.argmax(-1)
        chosen = [logits[-1]]
        for i in range(steps - 1):
            token = chosen[-1].argmax() if led_by is None else led_by[i]
            x = model.embed[token.to(device).long()].to(dtype)[None, None]
            at = torch.tensor([t + i], device=device)
            hidden = model.think(x, cache, at, t + i + 1, **options)
            chosen.append(self.logits(model, hidden[0, 0]))
        forced = torch.stack(chosen)
        first, second = forced.topk(2).values.unbind(-1)
        found |= {"lm.greedy_tokens": forced.argmax(-1), "lm.greedy_margins": first - second}
        found |= {"lm.logits_final": forced[-1], "lm.logits_forced": forced}
        self.tensors = {
            f"{name}.{key}": t.int() if t.dtype == torch.int64 else t.float() for key, t in found.items()
        }

    @staticmethod
    def logits(model: Vita, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, model.lm_head.to(hidden.dtype)).float()


def cases_for(model: Vita, flags: argparse.Namespace) -> list[dict]:
    """A mixed prompt and a written one."""
    seed = model.cfg.get("seed", 0)

    def ids(name: str, n: int) -> list[int]:
        noise = synth.noise(seed, f"fidelity.{name}", [n], 0.5, 0.5)
        return (noise * model.vocab).long().clamp(0, model.vocab - 1).tolist()

    text, n = ids("mixed", flags.prompt), flags.prompt // 4
    mixed = text[:n] + [IMAGE] * flags.tiles + text[n : 3 * n] + [SOUND] + text[3 * n :]
    return [
        {"name": "mixed", "images": flags.tiles, "audio_frames": flags.frames, "input_ids": mixed}
        | {"new_tokens": flags.steps},
        {"name": "text", "images": 0, "audio_frames": 0, "input_ids": ids("text", flags.prompt)}
        | {"new_tokens": flags.steps},
    ]


def by_steps(case: dict, want: dict[str, Tensor], steps: list[int]) -> tuple[list[dict], dict[str, Tensor]]:
    """The written case once for each number of steps, whose last logits the engine compares."""
    cases, tensors = [], {}
    for n in steps:
        name = f"step{n:02}"
        cases.append(case | {"name": name, "new_tokens": n})
        at = f"{case['name']}.lm."
        tensors[f"{name}.lm.logits_final"] = want[f"{at}logits_forced"][n - 1]
        for key in ("greedy_tokens", "greedy_margins"):
            tensors[f"{name}.lm.{key}"] = want[f"{at}{key}"][:n]
    return cases, tensors


def error(have: Tensor, want: Tensor) -> float:
    """‖a - b‖ / ‖b‖; NaN anywhere makes it infinite."""
    rel = ((have.double() - want.double()).norm() / want.double().norm()).item()
    return rel if rel == rel else float("inf")


def pooled(errors: list[float | None], norms: list[float]) -> float | None:
    """The error over several tensors taken as one."""
    if not errors or None in errors:
        return None
    return (sum((e * n) ** 2 for e, n in zip(errors, norms)) / sum(n * n for n in norms)) ** 0.5


def verify(flags: argparse.Namespace, config: Path, golden: Path) -> dict:
    """What `vivace verify` says; any error is allowed there, because it is judged here."""
    command = [flags.vivace, "verify", config, golden, "--device", flags.vivace_device]
    command += ["--max-rel", "1e30", "--json"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=flags.limit)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(
            f"vivace verify: exit code {done.returncode}: {done.stderr.strip()[-600:]}"
        ) from None


@torch.no_grad()
def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--vivace", type=Path, help="the binary; without it only PyTorch is measured")
    flags.add_argument("--config", type=Path, default=ROOT / "examples/vita-1.5.json")
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--vivace-device", default=None, help="default: cuda:0, or cpu with --device cpu")
    flags.add_argument(
        "--out", type=Path, help="folder for config and golden file, kept; default: a passing one"
    )
    flags.add_argument("--json", type=Path, help="write the errors to this file")
    flags.add_argument("--steps", type=int, default=64, help="teacher-forced steps")
    flags.add_argument(
        "--stride", type=int, default=8, help="compare every STRIDE-th step of the written prompt"
    )
    flags.add_argument("--prompt", type=int, default=128, help="text tokens of either prompt")
    flags.add_argument("--tiles", type=int, default=2)
    flags.add_argument("--frames", type=int, default=1000)
    flags.add_argument(
        "--attention", default="auto", choices=["auto", "cudnn", "flash", "math"], help="for bf16"
    )
    flags.add_argument("--limit", type=float, default=150, help="seconds for vivace verify")
    flags = flags.parse_args()
    flags.vivace_device = flags.vivace_device or ("cpu" if flags.device == "cpu" else "cuda:0")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    began = time.monotonic()
    cfg = json.loads(flags.config.read_text())
    model = Vita(cfg, flags.device)
    log(f"{time.monotonic() - began:6.1f} s  weights made")
    want, pytorch, norms = {}, {}, {}
    cases = cases_for(model, flags)
    for case in cases:
        with attention_by("math"):
            exact = Run(model, case, torch.float32).tensors
        log(f"{time.monotonic() - began:6.1f} s  {case['name']} in f32")
        led_by = exact[f"{case['name']}.lm.greedy_tokens"]
        with attention_by(flags.attention):
            rounded = Run(model, case, model.dtype, led_by).tensors
        log(f"{time.monotonic() - began:6.1f} s  {case['name']} in {cfg['dtype']}")
        for key, t in exact.items():
            if t.dtype == torch.float32 and not key.endswith("margins"):
                pytorch[key], norms[key] = error(rounded[key], t), t.double().norm().item()
        for i in range(flags.steps):
            key = f"{case['name']}.lm.logits_forced"
            pytorch[f"{key}.{i + 1}"] = error(rounded[key][i], exact[key][i])
            norms[f"{key}.{i + 1}"] = exact[key][i].double().norm().item()
        agree = (rounded[f"{case['name']}.lm.greedy_tokens"] == led_by).float().mean().item()
        log(f"          PyTorch's {cfg['dtype']} picks {agree:.0%} of the f32 tokens under teacher forcing")
        want |= {key: t.cpu().contiguous() for key, t in exact.items()}
        del exact, rounded

    counted = sorted({1, *range(flags.stride, flags.steps + 1, flags.stride), flags.steps})
    extra, tensors = by_steps(cases[1], want, counted)
    for n in counted:
        name, step = f"step{n:02}.lm.logits_final", f"text.lm.logits_forced.{n}"
        pytorch[name], norms[name] = pytorch[step], norms[step]

    engine: dict[str, float | None] = {}
    report, failure = None, None
    if flags.vivace:
        del model
        if flags.device != "cpu":
            torch.cuda.empty_cache()
        with tempfile.TemporaryDirectory() as passing:
            folder = flags.out or Path(passing)
            folder.mkdir(parents=True, exist_ok=True)
            config, golden = folder / "fidelity.json", folder / "fidelity.safetensors"
            config.write_text(json.dumps(copy.deepcopy(cfg) | {"cases": cases + extra}))
            # Keys by steps share memory with the whole.
            save_file({k: t.clone() for k, t in (want | tensors).items()}, golden)
            try:
                report = verify(flags, config, golden)
                engine = {c["name"]: c["rel"] for c in report["checks"]}
            except (RuntimeError, OSError, subprocess.SubprocessError) as e:
                failure = str(e)
    log(f"{time.monotonic() - began:6.1f} s  done")

    steps = [f"step{n:02}.lm.logits_final" for n in counted]
    for side in (pytorch, engine):
        value = pooled([side.get(s) for s in steps], [norms[s] for s in steps])
        if value is not None:
            side["text.lm.logits_steps"] = value
    rows, failed = [], []
    for key in sorted(pytorch):
        if "logits_forced." in key:
            continue
        ours, theirs = engine.get(key), pytorch[key]
        row = {
            "name": key,
            "pytorch": theirs,
            "vivace": ours,
            "ratio": ours / theirs if ours and theirs else None,
        }
        judged = key.split(".", 1)[1] in JUDGED
        if judged and key in engine:
            row["pass"] = ours is not None and ours <= ALLOWED * theirs
            failed += [] if row["pass"] else [key]
        rows.append(row)
    cells = [
        [r["name"], f"{r['pytorch']:.3e}", "-" if r["vivace"] is None else f"{r['vivace']:.3e}"]
        + [
            "-" if r["ratio"] is None else f"{r['ratio']:.2f}",
            {True: "ok", False: "FAIL"}.get(r.get("pass"), ""),
        ]
        for r in rows
    ]
    print(table(["error against f32", f"PyTorch {cfg['dtype']}", "vivace", "ratio", ""], cells))
    tokens = [(k, e) for k, e in engine.items() if k.endswith("greedy_tokens")]
    for name, share in tokens:
        print(f"{name}: {share:.0%} of the sure tokens differ")
    if failure:
        print(f"vivace: {failure}")
    if flags.json:
        write_json(flags.json, about(flags) | {"rows": rows, "tokens": dict(tokens), "vivace": report})
    if flags.vivace:
        print(f"{len(failed)} of {sum('pass' in r for r in rows)} judged errors above {ALLOWED} x PyTorch's")
        sys.exit(bool(failed or failure))


if __name__ == "__main__":
    main()
