"""Compares model.py with reference outputs of synthetic models: `check_golden.py NAME.json ...`, each with
its NAME.safetensors beside it. Weights and inputs are functions of (seed, name, index)."""

import json
import sys
from pathlib import Path

from needs import need_modules

need_modules("numpy", "torch", "safetensors")

import numpy as np
import torch

from model import Vita, rows_of_sound

WRAP = np.uint64


def mix(z):
    z = (z ^ (z >> WRAP(30))) * WRAP(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> WRAP(27))) * WRAP(0x94D049BB133111EB)
    return z ^ (z >> WRAP(31))


def synthetic(seed: int, name: str, shape, centre: float, scale: float) -> torch.Tensor:
    with np.errstate(over="ignore"):
        h = WRAP(0xCBF29CE484222325)
        for b in name.encode():
            h = (h ^ WRAP(b)) * WRAP(0x100000001B3)
        i = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
        r = mix(mix(WRAP(seed) ^ h) + i * WRAP(0x9E3779B97F4A7C15))
    u = (r >> WRAP(40)).astype(np.float32) * np.float32(1 / 8388608) - np.float32(1)
    return torch.from_numpy(np.float32(centre) + np.float32(scale) * u).view(*shape)


def weight(seed: int, name: str, shape) -> torch.Tensor:
    last = name.rsplit(".", 1)[-1]
    if name.endswith("global_cmvn.mean"):
        centre, scale = 16, 1
    elif name.endswith("global_cmvn.istd"):
        centre, scale = 0.3, 0.02
    elif last in ("ls1", "ls2"):
        centre, scale = 0.3, 0.1
    elif last in ("pos_bias_u", "pos_bias_v"):
        centre, scale = 0, 0.1
    elif last in ("class_embedding", "position_embedding") or "embed_tokens" in name:
        centre, scale = 0, 1
    elif last == "bias":
        centre, scale = 0, 0.05
    elif len(shape) == 1:
        centre, scale = 1, 0.1
    else:
        centre, scale = 0, np.sqrt(3 / np.prod(shape[1:]))
    return synthetic(seed, name, shape, centre, scale)


@torch.no_grad()
def check(path: Path) -> float:
    from safetensors.torch import load_file

    cfg, golden = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    model, seed, worst = Vita(cfg).eval(), cfg["seed"], 0.0
    low = getattr(torch, cfg["dtype"])
    model.load_state_dict(
        {n: weight(seed, n, t.shape).to(low).float() for n, t in model.state_dict().items()}
    )

    def compare(key: str, got: torch.Tensor):
        nonlocal worst
        if key in golden:
            error = ((got - golden[key]).norm() / golden[key].norm()).item()
            worst = max(worst, error)
            print(f"  {key:32} {error:.1e}")

    for case in cfg["cases"]:
        name, side = case["name"], cfg["vision_config"]["image_size"]
        media, image_rows, sound_rows = [], 0, 0
        if case["images"]:
            pixels = synthetic(seed, f"{name}.pixel_values", (case["images"], 3, side, side), 0, 1)
            hidden, rows = model.see(pixels)
            compare(f"{name}.vision.last_hidden_state", hidden)
            compare(f"{name}.vision.projected", rows)
            image_rows = rows.shape[1]
            media.append(rows.flatten(0, 1))
        if case["audio_frames"]:
            frames = case["audio_frames"]
            fbank = synthetic(seed, f"{name}.fbank", (1, frames, 80), 16, 4)
            sub, enc, rows = model.hear(fbank, torch.tensor([frames]))
            compare(f"{name}.audio.subsampled", sub)
            compare(f"{name}.audio.encoder", enc)
            compare(f"{name}.audio.embeds", rows)
            sound_rows = rows_of_sound(frames)
            media.append(rows[0, :sound_rows])
            # The same sound as one of a padded batch.
            padded = torch.cat([fbank, torch.randn(1, 37, 80)], 1)
            batch = model.hear(
                torch.cat([torch.randn_like(padded), padded]), torch.tensor([frames + 37, frames])
            )[2]
            padding = (batch[1, :sound_rows] - rows[0, :sound_rows]).norm() / rows.norm()
            worst = max(worst, padding.item())
        ids, row = [], 0
        for i in case["input_ids"]:
            n = {-200: image_rows, -500: sound_rows}.get(i)
            ids += [i] if n is None else range(-1 - row, -1 - row - n, -1)
            row += n or 0
        x = model.merge(
            torch.tensor([ids]), torch.cat(media) if media else torch.zeros(1, cfg["hidden_size"])
        )
        compare(f"{name}.inputs_embeds", x[0])
        hidden = model.think(x)
        compare(f"{name}.lm.hidden_last", hidden[0, -1])
        compare(f"{name}.lm.logits_tail", model.logits(hidden)[0, -8:])
        greedy = []
        for _ in range(case["new_tokens"]):
            greedy.append(model.logits(model.think(x)[0, -1]).argmax())
            x = torch.cat([x, model.model.embed_tokens(greedy[-1])[None, None]], 1)
        if torch.stack(greedy).tolist() != golden[f"{name}.lm.greedy_tokens"].tolist():
            print(f"  {name}: greedy tokens differ")
            worst = float("inf")
    return worst


if __name__ == "__main__":
    failed = False
    for arg in sys.argv[1:]:
        print(arg)
        error = check(Path(arg))
        failed |= error > 1e-4
        print(f"  worst {error:.1e}")
    sys.exit(failed)
