"""Writes held-out cases: pictures of unseen seeds, questions written or spoken by voices and at speeds never
trained on, noises. `cases.py OUT --count 64` writes PNG, FLAC and OGG files and cases.json, a list of

    {"name", "turns": [{"images": [file], "audio": file or null, "prompt", "answer", "kind",
                        "state": text|audio|noise}]}

`--demo` writes one case instead: a picture of four shapes and a spoken question about one of them.
"""

import argparse
import json
import random
from pathlib import Path

from needs import need_espeak, need_modules

need_modules("numpy", "PIL", "soundfile")

import numpy as np

import questions
from pictures import make_scene, render
from questions import Query
from speech import RATE, Voice, noise, ogg, say

# How many of each in a round of 32; a case has one turn unless it is a dialogue.
ROUND = (
    ["written"] * 11
    + ["spoken"] * 11
    + ["noise"] * 2
    + ["other speech"] * 2
    + ["two"] * 2
    + ["dialogue"] * 2
    + ["blind", "no question"]
)
KINDS = list(questions.WEIGHTS)
TILE = 140


class Writer:
    def __init__(self, out: Path, seed: int, small: bool):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.small, self.cases = out, small, []
        self.rng = random.Random(f"cases {seed}")
        self.noises = np.random.default_rng(seed)

    def scene(self, single: bool = False):
        """Small cases have small files: noise makes large ones of large pictures."""
        while True:
            scene = make_scene(self.rng, TILE, range(1, 2) if single else range(1, 14))
            area = scene.width * scene.height
            if not self.small or area < (15_000 if scene.noise else 80_000):
                return scene

    def picture(self, name: str, scene) -> str:
        render(scene).save(self.out / f"{name}.png", optimize=True)
        return f"{name}.png"

    def sound(self, name: str, samples: np.ndarray) -> str:
        rng = self.rng
        quiet = [np.zeros(int(rng.uniform(0, 0.3) * RATE), np.float32) for _ in range(2)]
        x = np.concatenate([quiet[0], samples, quiet[1]])
        if rng.random() < 0.6:
            level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(20, 40) / 20)
            x = x + level * self.noises.standard_normal(len(x))
        x = np.clip(x * 10 ** (rng.uniform(-8, 0) / 20), -1, 1)
        form, subtype, end = rng.choice(
            (("FLAC", "PCM_16", "flac"), ("OGG", "VORBIS", "ogg"), ("OGG", "VORBIS", "ogg"))
        )
        (self.out / f"{name}.{end}").write_bytes(ogg(x, form, subtype))
        return f"{name}.{end}"

    def voice(self, text: str) -> np.ndarray:
        samples = say(text, Voice.draw(self.rng, held_out=True))
        return samples * (0.5 / np.abs(samples).max())

    def turn(self, name: str, query: Query, spoken: bool, images: list[str], silent: bool = False) -> dict:
        prompt = "" if spoken or silent else query.text
        return {
            "images": images,
            "audio": self.sound(name, self.voice(query.text)) if spoken else None,
            "prompt": prompt,
            "state": "audio" if spoken else "text",
            "answer": query.answer,
            "kind": query.kind,
        }

    def add(self, what: str):
        rng, n = self.rng, len(self.cases)
        name = f"{n:03}"
        spoken = what == "spoken" or what in ("two", "dialogue", "blind") and rng.random() < 0.5
        if what in ("noise", "other speech"):
            images = [self.picture(name, self.scene())] if rng.random() < 0.5 else []
            if what == "noise":
                clip = noise(10**6 + self.noises.integers(10**6)).astype(np.float32) / 32768
            else:
                clip = self.voice(questions.chatter(random.Random(rng.random())))
            turns = [
                {
                    "images": images,
                    "audio": self.sound(name, clip),
                    "prompt": "",
                    "state": "noise",
                    "answer": "",
                    "kind": what,
                }
            ]
        elif what == "two":
            scenes = (self.scene(single=True), self.scene(single=True))
            images = [self.picture(f"{name}{k}", s) for k, s in zip("ab", scenes)]
            turns = [self.turn(name, questions.ask_two(rng, scenes), spoken, images)]
        elif what == "blind":
            ask = rng.choice((questions.small_talk, questions.ask_blindly))
            turns = [self.turn(name, ask(rng), spoken, [])]
        elif what == "dialogue":
            while True:
                scene = self.scene()
                first = questions.ask(rng, scene)
                if second := questions.ask_again(rng, scene, first):
                    break
            turns = [
                self.turn(f"{name}a", first, spoken, [self.picture(name, scene)]),
                self.turn(f"{name}b", second, spoken, []),
            ]
        else:
            scene = self.scene()
            silent = what == "no question"
            query = questions.ask(rng, scene, "describe" if silent else KINDS[n % len(KINDS)])
            turns = [self.turn(name, query, spoken, [self.picture(name, scene)], silent)]
        self.cases.append({"name": f"{name} {turns[-1]['kind']}", "turns": turns})

    def demo(self):
        while True:
            scene = make_scene(self.rng, TILE, range(3, 6), count=4)
            shapes = [t.shape for t in scene.things]
            if (
                len(set(shapes)) == len({t.colour for t in scene.things}) == 4
                and "star" in shapes
                and not scene.noise
                and min(scene.background) > 200
            ):
                break
        star = scene.things[shapes.index("star")]
        query = Query("colour", "What colour is the star?", f"The star is {star.colour}.")
        self.cases.append(
            {"name": "demo", "turns": [self.turn("demo", query, True, [self.picture("demo", scene)])]}
        )

    def finish(self):
        (self.out / "cases.json").write_text(json.dumps(self.cases, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="only pictures that make small files")
    parser.add_argument("--demo", action="store_true")
    args = parser.parse_args()
    need_espeak()
    writer = Writer(args.out, args.seed, args.small)
    if args.demo:
        args.count = 1
        writer.demo()
    order = random.Random(args.seed)
    while len(writer.cases) < args.count:
        for what in order.sample(ROUND, len(ROUND))[: args.count - len(writer.cases)]:
            writer.add(what)
    writer.finish()
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"{len(writer.cases)} cases, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
