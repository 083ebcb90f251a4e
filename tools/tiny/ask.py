"""Answers one question in PyTorch, in f32: `ask.py MODEL --image a.png --audio q.flac --prompt TEXT`.

Prints the tokens and the text, and with `--logits FILE` writes the logits of every row of the prompt as .npy:
what the engine is compared with."""

import argparse
from pathlib import Path

from needs import need_file, need_modules

need_modules("numpy", "torch", "PIL", "tokenizers", "safetensors", "soundfile")

import numpy as np
import soundfile
import torch
from PIL import Image

from model import load, rows_of_sound
from pictures import tile
from speech import RATE, Filterbank
from tokenizer import Template


@torch.no_grad()
def merged(model, template: Template, images: list[Path], audio: Path | None, prompt: str) -> torch.Tensor:
    """The prompt's rows `[1, T, C]`."""
    media, tiles, sound = [], [], []
    size = model.cfg["vision_config"]["image_size"]
    if images:
        pixels = np.concatenate([tile(Image.open(f).convert("RGB"), size) for f in images])
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
        media.append(
            model.see((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std)[1].flatten(
                0, 1
            )
        )
        tiles = [-1 - i for i in range(len(media[0]))]
    if audio:
        samples, rate = soundfile.read(audio, dtype="float32", always_2d=True)
        if rate != RATE:
            raise SystemExit(f"{audio}: {rate} samples per second; this script takes {RATE}")
        fbank = Filterbank()(torch.from_numpy(samples[:, 0])[None])
        rows = rows_of_sound(fbank.shape[1])
        media.append(model.hear(fbank, torch.tensor([fbank.shape[1]]))[2][0, :rows])
        sound = [-1 - len(tiles) - i for i in range(rows)]
    ids = template.begin(bool(tiles)) + template.turn(prompt, tiles, sound)
    return model.merge(
        torch.tensor([ids]), torch.cat(media) if media else torch.zeros(1, model.cfg["hidden_size"])
    )


@torch.no_grad()
def generate(model, x: torch.Tensor, stop: set[int], most: int) -> list[int]:
    """Greedy tokens after the rows `x`, the stop token included."""
    tokens: list[int] = []
    while len(tokens) < most and (not tokens or tokens[-1] not in stop):
        tokens.append(int(model.logits(model.think(x)[0, -1]).argmax()))
        x = torch.cat([x, model.model.embed_tokens.weight[tokens[-1]][None, None]], 1)
    return tokens


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--image", type=Path, nargs="*", default=[])
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--logits", type=Path)
    args = parser.parse_args()
    need_file(args.model / "model.safetensors", "MODEL is a checkpoint folder, as train.py writes")
    model, template = load(args.model), Template(args.model / "tokenizer.json")
    x = merged(model, template, args.image, args.audio, args.prompt)
    if args.logits:
        with torch.no_grad():
            np.save(args.logits, model.logits(model.think(x))[0].numpy())
    tokens = generate(model, x, {template.im_end, template.pad}, args.max_new_tokens)
    print(len(x[0]), "rows,", "tokens", tokens)
    print(template.tokenizer.decode(tokens))


if __name__ == "__main__":
    main()
