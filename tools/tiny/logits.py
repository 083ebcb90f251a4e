"""Writes what the engine's logits are compared with: `logits.py CASES MODEL OUT.safetensors`.

For the first turn of some cases of the folder CASES, one f32 tensor `[rows, vocab]` of each, named as the case, with
the logits of eight rows of the prompt, evenly spread, the last one included; and `NAME rows`, which rows these are.
All in f32 on the CPU."""

import argparse
import json
from pathlib import Path

from needs import need_file, need_modules

need_modules("numpy", "torch", "PIL", "tokenizers", "safetensors", "soundfile")

import torch
from safetensors.torch import save_file

from ask import merged
from model import load
from tokenizer import Template

ROWS = 8


def chosen(cases: list[dict]) -> list[dict]:
    """The first case of each make-up: pictures, a sound or none, text or none."""
    first = {}
    for case in cases:
        turn = case["turns"][0]
        sound = Path(turn["audio"]).suffix if turn["audio"] else ""
        first.setdefault((min(len(turn["images"]), 2), sound, bool(turn["prompt"])), case)
    return list(first.values())


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    need_file(args.model / "model.safetensors", "MODEL is a checkpoint folder, as train.py writes")
    model, template = load(args.model), Template(args.model / "tokenizer.json")
    tensors = {}
    for case in chosen(json.loads(need_file(args.cases / "cases.json", f"python cases.py {args.cases}").read_text())):
        turn = case["turns"][0]
        images = [args.cases / name for name in turn["images"]]
        audio = args.cases / turn["audio"] if turn["audio"] else None
        x = merged(model, template, images, audio, turn["prompt"])
        rows = torch.linspace(0, x.shape[1] - 1, ROWS).round().long()
        tensors[case["name"]] = model.logits(model.think(x))[0, rows].contiguous()
        tensors[f"{case['name']} rows"] = rows
        print(f"{case['name']}: {len(images)} pictures, sound {turn['audio']}, {x.shape[1]} rows")
    save_file(tensors, args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
