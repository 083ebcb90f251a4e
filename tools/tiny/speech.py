"""Sounds: what espeak-ng says, packed small; noises and tones; the filterbank that the encoder hears.

`speech.py OUT` writes the pack: `speech-K.ogg` (Opus, 16 kHz, many clips one after another) and
`speech.json`, which says what is said where. Voices and speeds of the held-out clips are none of those for
training."""

import argparse
import io
import json
import math
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from needs import need_espeak, need_modules

need_modules("numpy", "PIL", "soundfile")

import numpy as np
import soundfile

import questions

RATE = 16000
ACCENTS = (
    "en-gb",
    "en-us",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
TRAIN_VOICES = (
    "m1",
    "m2",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "f1",
    "f3",
    "f4",
    "f5",
    "Andy",
    "linda",
    "steph",
    "travis",
    "belinda",
    "benjamin",
    "boris",
    "caleb",
    "adam",
    "grandma",
    "grandpa",
    "paul",
    "Alicia",
    "Mike",
    "zac",
    "klatt",
    "klatt3",
)
HELD_OUT_VOICES = ("m3", "f2", "david", "shelby")
TRAIN_SPEEDS = range(120, 200, 10)
HELD_OUT_SPEEDS = range(125, 195, 20)
CLIPS_PER_FILE = 500
# Between clips, so that the codec does not smear one into the next.
GAP = RATE // 20


@dataclass(frozen=True)
class Voice:
    accent: str
    variant: str
    speed: int
    pitch: int

    @staticmethod
    def draw(rng: random.Random, held_out: bool) -> "Voice":
        return Voice(
            rng.choice(ACCENTS),
            rng.choice(HELD_OUT_VOICES if held_out else TRAIN_VOICES),
            rng.choice(HELD_OUT_SPEEDS if held_out else TRAIN_SPEEDS),
            rng.choice((35, 45, 55, 65) if held_out else (30, 40, 50, 60, 70)),
        )


def say(text: str, voice: Voice) -> np.ndarray:
    """What espeak-ng makes of a text: f32 at 16 kHz, without the silence around it."""
    args = [
        "-v",
        f"{voice.accent}+{voice.variant}",
        "-s",
        str(voice.speed),
        "-p",
        str(voice.pitch),
        "--stdout",
        text,
    ]
    wav = subprocess.run(["espeak-ng", *args], check=True, capture_output=True).stdout
    samples = np.frombuffer(wav[44:], np.int16).astype(np.float32) / 32768
    # 22050 to 16000 Hz: the spectrum up to the new Nyquist.
    n = len(samples) * 320 // 441
    samples = np.fft.irfft(np.fft.rfft(samples)[: n // 2 + 1], n).astype(np.float32) * (n / len(samples))
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[max(0, loud[0] - 320) : loud[-1] + 800]


def write_pack(out: Path, per_text: int, held_out_per_text: int, chatter: int) -> None:
    need_espeak()
    rng = random.Random(20)
    jobs = []
    for held_out, per, others in ((False, per_text, chatter), (True, held_out_per_text, chatter // 8)):
        jobs += [(text, True, held_out) for text in questions.inventory() for _ in range(per)]
        jobs += [(text, False, held_out) for text in sorted({questions.chatter(rng) for _ in range(others)})]
    said = {text for text, asked, held_out in jobs if not asked and not held_out}
    jobs = [j for j in jobs if not (j[2] and j[0] in said)]
    rng.shuffle(jobs)
    out.mkdir(parents=True, exist_ok=True)
    index = []
    for k in range(0, len(jobs), CLIPS_PER_FILE):
        parts, at = [np.zeros(RATE // 2, np.float32)], RATE // 2
        for text, asked, held_out in jobs[k : k + CLIPS_PER_FILE]:
            voice = Voice.draw(rng, held_out)
            clip = say(text, voice)
            clip *= 0.5 / np.abs(clip).max()
            index.append(
                {
                    "text": text,
                    "question": asked,
                    "held_out": held_out,
                    "voice": f"{voice.accent}+{voice.variant}",
                    "speed": voice.speed,
                    "file": k // CLIPS_PER_FILE,
                    "start": at,
                    "length": len(clip),
                }
            )
            parts += [clip, np.zeros(GAP, np.float32)]
            at += len(clip) + GAP
        name = out / f"speech-{k // CLIPS_PER_FILE}.ogg"
        with soundfile.SoundFile(name, "w", RATE, 1, "OPUS", format="OGG", compression_level=0.93) as f:
            samples = np.concatenate(parts)
            for i in range(0, len(samples), RATE):
                f.write(samples[i : i + RATE])
        print(
            f"{min(k + CLIPS_PER_FILE, len(jobs))} of {len(jobs)} clips, {name.stat().st_size / 1e6:.1f} MB",
            flush=True,
        )
    (out / "speech.json").write_text(json.dumps(index))


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == RATE, (path, rate)
    return samples


@dataclass
class Clips:
    """All sounds in one row of 16-bit samples."""

    samples: np.ndarray
    start: np.ndarray
    length: np.ndarray
    text: list[str]
    # A question to the model; else chatter, or a noise if the text is empty.
    question: np.ndarray
    held_out: np.ndarray

    @staticmethod
    def read(folder: Path, noises: int, jobs: int) -> "Clips":
        """The pack, and `noises` noises (a tenth of them held out)."""
        from multiprocessing import get_context

        index = json.loads((folder / "speech.json").read_text())
        files = [folder / f"speech-{k}.ogg" for k in range(1 + max(c["file"] for c in index))]
        with get_context("fork").Pool(jobs) as pool:
            decoded = pool.map_async(_read, files)
            made = pool.map(noise, range(noises), chunksize=16)
            decoded = decoded.get()
        offset = np.cumsum([0] + [len(d) for d in decoded])
        lengths = np.array([c["length"] for c in index] + [len(x) for x in made])
        tail = offset[-1] + np.cumsum([0] + [len(x) for x in made])[:-1]
        return Clips(
            np.concatenate(decoded + made),
            np.concatenate([[offset[c["file"]] + c["start"] for c in index], tail]).astype(np.int64),
            lengths.astype(np.int64),
            [c["text"] for c in index] + [""] * noises,
            np.array([c["question"] for c in index] + [False] * noises),
            np.array([c["held_out"] for c in index] + [i % 10 == 0 for i in range(noises)]),
        )


def noise(seed: int) -> np.ndarray:
    """What is no speech: silence, hisses, hums, clicks, melodies, sirens; 0.4 to 3.5 seconds."""
    rng = np.random.default_rng(seed)
    n = int(rng.uniform(0.4, 3.5) * RATE)
    t = np.arange(n) / RATE
    kind = rng.integers(7)
    if kind == 0:  # silence, or nearly
        x = rng.standard_normal(n) * rng.choice([0, 1e-4, 1e-3])
    elif kind in (1, 2):  # white to brown, perhaps swelling
        f = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 30)
        x = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * f ** -rng.uniform(0, 1.2), n)
        if kind == 2:
            x *= 0.1 + np.sin(math.pi * rng.uniform(0.3, 4) * t + rng.uniform(0, 6)) ** 2
    elif kind == 3:  # hum
        base = rng.uniform(45, 220)
        x = sum(
            rng.random() / k * np.sin(2 * math.pi * base * k * t + rng.uniform(0, 6)) for k in range(1, 9)
        )
        x = x + 0.05 * rng.standard_normal(n)
    elif kind == 4:  # clicks and knocks
        x = np.zeros(n)
        for at in rng.integers(0, n, rng.integers(2, 14)):
            m = min(n - at, int(rng.uniform(0.004, 0.12) * RATE))
            x[at : at + m] += rng.standard_normal(m) * np.exp(-np.arange(m) * 6 / m)
    elif kind == 5:  # a melody, perhaps with chords
        x, at, scale = np.zeros(n), 0, np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16])
        base, voices = rng.uniform(110, 440), rng.integers(1, 4)
        while at < n:
            m = min(n - at, int(rng.choice([0.12, 0.2, 0.3, 0.5]) * RATE))
            s = np.arange(m) / RATE
            for step in rng.choice(scale, voices):
                f = base * 2 ** (step / 12)
                tone = sum(np.sin(2 * math.pi * f * k * s) * 0.6**k for k in range(1, 6))
                x[at : at + m] += tone * np.minimum(1, s * 60) * np.exp(-s * rng.uniform(0, 8))
            at += m
    else:  # a siren or a sweep
        f = rng.uniform(200, 900) + rng.uniform(50, 600) * np.sin(2 * math.pi * rng.uniform(0.3, 6) * t)
        x = np.sin(2 * math.pi * np.cumsum(f) / RATE)
    peak = np.abs(x).max()
    x *= rng.uniform(0.05, 0.5) / peak if peak > 0.01 else 1
    return np.rint(x * 32767).astype(np.int16)


def mel_banks() -> np.ndarray:
    """80 triangles over 256 bins, equally wide on the mel scale from 20 Hz to Nyquist."""

    def mel(hz):
        return 1127 * np.log1p(np.asarray(hz, np.float64) / 700)

    low, high = mel(20), mel(RATE / 2)
    step = (high - low) / 81
    left = low + np.arange(80)[:, None] * step
    m = mel(np.arange(256) * RATE / 512)
    return np.maximum(np.minimum((m - left) / step, (left + 2 * step - m) / step), 0).astype(np.float32)


def frame_count(samples):
    return (samples - 400) // 160 + 1


class Filterbank:
    """Kaldi's log-mel frames of `[n, samples]` (full scale -1..1) at 16 kHz, on any device: `[n, frames,
    80]`."""

    def __init__(self, device="cpu"):
        import torch

        self.torch = torch
        i = np.arange(400)
        window = (0.5 - 0.5 * np.cos(2 * math.pi * i / 399)) ** 0.85
        self.window = torch.tensor(window, dtype=torch.float32, device=device)
        self.banks = torch.tensor(mel_banks(), device=device)

    def __call__(self, samples):
        torch = self.torch
        x = samples.float().unfold(-1, 400, 160) * 32768
        x = x - x.mean(-1, keepdim=True)
        x = x - 0.97 * torch.cat([x[..., :1], x[..., :-1]], -1)
        power = torch.fft.rfft(x * self.window, 512).abs().square()[..., :256]
        return (power @ self.banks.T).clamp(min=1.1920929e-7).log()


def ogg(samples: np.ndarray, form: str = "OGG", subtype: str = "VORBIS") -> bytes:
    """An encoded file in memory."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=form, subtype=subtype)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-text", type=int, default=22, help="training clips of each question")
    parser.add_argument("--held-out-per-text", type=int, default=3)
    parser.add_argument(
        "--chatter", type=int, default=2000, help="sentences that are no question to the model"
    )
    args = parser.parse_args()
    write_pack(args.out, args.per_text, args.held_out_per_text, args.chatter)
