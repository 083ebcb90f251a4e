#!/usr/bin/env python3
"""Compares model.py with reference outputs of synthetic models, in f32: `check.py NAME.json ...`, each with
its NAME.safetensors beside it. Prompts run as a prefill, greedy tokens as steps over the static cache."""

import argparse
import json
import sys
from pathlib import Path

from needs import need_modules

need_modules("torch", "safetensors")

import torch
from safetensors.torch import load_file

import synth
from fidelity import Run
from model import Vita

# First values of lm_head.weight with seed 0.
HEAD = [-0.13936007, -0.7551758, -0.67088795, -0.91092753, 0.93404496, 0.1254332, 0.49439204, -0.9706547]


@torch.no_grad()
def check(path: Path, device: str) -> float:
    cfg, golden = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    model, worst = Vita(cfg, device), 0.0
    for case in cfg["cases"]:
        got = Run(model, case, torch.float32).tensors
        for key in [k for k in golden if k.startswith(f"{case['name']}.") and not k.endswith(".rows")]:
            want, have = golden[key], got[key].cpu()
            if f"{key}.rows" in golden:
                have = have[..., golden[f"{key}.rows"].long(), :]
            if want.dtype == torch.int32:
                error = (have.flatten() != want.flatten()).float().mean().item()
            else:
                error = ((have - want).norm() / want.norm()).item()
            worst = max(worst, error)
            print(f"  {key:32} {error:.1e}")
    return worst


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("configs", nargs="+", type=Path)
    flags.add_argument("--device", default="cpu")
    flags = flags.parse_args()
    noise = synth.noise(0, "lm_head.weight", [8], 0, 1, device=flags.device)
    failed = not torch.equal(noise.cpu(), torch.tensor(HEAD))
    print(f"noise: {'other bits' if failed else 'the same bits'}")
    for path in flags.configs:
        print(path)
        error = check(path, flags.device)
        failed |= not error < 1e-4
        print(f"  worst {error:.1e}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
