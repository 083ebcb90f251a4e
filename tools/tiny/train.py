"""Trains the tiny VITA on one GPU (or, for a look, on a CPU).

    train.py --pack PACK --out OUT --minutes 7.3 --compile    as the model in the repository was made
    train.py --pack PACK --out OUT --minutes 1                steps per second and memory
    train.py ... --resume                                     goes on where a run was cut off

The schedule follows the clock: the learning rate falls to 0 when the minutes are over, data preparation and
evaluation included. Writes OUT/model (a checkpoint folder), OUT/curve.json and OUT/scores.json."""

import argparse
import json
import math
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from queue import Queue

from needs import need_file, need_modules

need_modules("numpy", "torch", "PIL", "tokenizers", "safetensors", "soundfile")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import FEW_TILES, LETTERS, MANY_TILES, WAYS, Generator, Loader, mixed, slot_bytes
from model import Vita, frames_after_convs, init_weights, load, rows_of_sound, save
from muon import Muon
from pictures import COLOURS, PLACES, SHAPES
from speech import RATE, Clips, Filterbank
from tokenizer import Template

CONFIG = {
    "architectures": ["VITAQwen2ForCausalLM"],
    "model_type": "vita-Qwen2",
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "vocab_size": 608,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "tokenizer_model_max_length": 2048,
    "image_aspect_ratio": "square",
    "mm_hidden_size": 768,
    "mm_projector_type": "mlp2x_gelu",
    "vision_config": {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 576,
        "num_hidden_layers": 4,
        "image_size": 140,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
    },
    # Encoder frames carry no position of their own. Short chunks are what keeps a frame's context local.
    "audio_config": {
        "input_dim": 80,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "chunk_size": 4,
        "left_chunks": 4,
        "adapter_kernel_size": 5,
    },
}
SEED = 0
PEAK_RATE = 1.5e-3
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.05
EMA = 0.998
SAVE_SECONDS = 20
EVALUATION_BATCHES = 12
# Shares of the losses that exist only in training.
WEIGHT_PATCHES, WEIGHT_ROWS, WEIGHT_WHOSE, WEIGHT_WORDS, WEIGHT_LETTERS = 0.5, 0.5, 0.2, 0.3, 0.3
# The layer of the language model after which the rows of a picture shall know which picture is theirs.
KNOWS_WHOSE = 2


class Helpers(nn.Module):
    """Heads of the auxiliary losses, dropped after training. They tell the encoders early what is worth
    seeing and hearing, long before the language model knows what to ask of them."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.sees = 2 + len(COLOURS) * len(SHAPES) + 2 * PLACES
        self.patches = nn.Linear(cfg["vision_config"]["hidden_size"], self.sees)
        # The pixel shuffle makes a row of four patches.
        self.rows = nn.Linear(cfg["hidden_size"], 4 * self.sees)
        self.whose = nn.Linear(cfg["hidden_size"], 2)
        self.letters = nn.Linear(cfg["audio_config"]["hidden_size"], 1 + len(LETTERS))
        self.blank = nn.Parameter(torch.zeros(cfg["hidden_size"]))

    def picture_loss(self, hidden: Tensor, rows: Tensor, b: dict[str, Tensor]) -> Tensor:
        """What is seen, by the tower's patches and again by the rows that the language model gets. Nothing else
        would teach the vertical early, of which few questions ask."""
        seen = torch.stack([b["shown"], b["centres"], b["places"]], -1)
        of_rows = shuffled(seen).flatten(0, 2)
        y = self.rows(rows).view(-1, self.sees)
        return WEIGHT_PATCHES * self.seen_loss(self.patches(hidden[:, 1:]).flatten(0, 1), seen.flatten(0, 1)) + (
            WEIGHT_ROWS * self.seen_loss(y, of_rows)
        )

    def seen_loss(self, y: Tensor, seen: Tensor) -> Tensor:
        """What a patch shows, whether it holds the centre of something, and where in its tile the centre of
        what it shows lies."""
        shown, centres, places = seen.long().unbind(-1)
        centre, what, down, across = y.float().split([1, self.sees - 1 - 2 * PLACES, PLACES, PLACES], -1)
        weight = torch.where(shown > 0, 1.0, 0.2)
        of_what = (F.cross_entropy(what, shown, reduction="none") * weight).sum() / weight.sum()
        of_centres = F.binary_cross_entropy_with_logits(centre[:, 0], centres.clamp(max=1).float())
        placed = (places > 0).float()
        place = (places - 1).clamp(min=0)
        of_places = F.cross_entropy(down, place // PLACES, reduction="none") + F.cross_entropy(
            across, place % PLACES, reduction="none"
        )
        return of_what + of_centres + 0.2 * (of_places * placed).sum() / placed.sum().clamp(min=1)

    def whose_loss(self, held: Tensor, whose: Tensor) -> Tensor:
        """Which of two pictures a row belongs to: "the first picture" can be asked for only when rows know."""
        at, which = whose.long().unbind(1)
        rows = held.flatten(0, 1).index_select(0, at)
        return F.cross_entropy(self.whose(F.rms_norm(rows, rows.shape[-1:])).float(), which)

    def speech_loss(self, vita: Vita, encoded: Tensor, rows: Tensor, b: dict[str, Tensor]) -> Tensor:
        """Letters from the encoder's frames; words from the rows that the language model gets, by its own
        embedding: a spoken word shall look to it like the written one."""
        some, frames, words_length, letters_length = b["voiced"]
        table = torch.cat([self.blank[None], vita.model.embed_tokens.weight])
        words = F.linear(F.rms_norm(rows[some].float(), rows.shape[-1:]), table).float()
        letters = self.letters(encoded[some]).float()
        return WEIGHT_WORDS * ctc(
            words, rows_of_sound(frames), 1 + b["words"][some], words_length
        ) + WEIGHT_LETTERS * ctc(letters, frames_after_convs(frames), b["letters"][some], letters_length)


def shuffled(seen: Tensor) -> Tensor:
    """Labels of patches `[n, grid², l]` as those of the pixel shuffle's rows: `[n, grid² / 4, 4, l]`."""
    n, t, labels = seen.shape
    grid = math.isqrt(t)
    x = seen.view(n, grid // 2, 2, grid // 2, 2, labels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, t // 4, 4, labels)


def ctc(scores: Tensor, lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """Lengths lie on the host, where the loss wants them."""
    return F.ctc_loss(
        scores.log_softmax(-1).transpose(0, 1), target.long(), lengths, target_lengths, zero_infinity=True
    )


class Ears:
    """Turns clips and what is done to them into log-mel frames, a batch at a time, on the device."""

    def __init__(self, clips: Clips, device: torch.device):
        self.samples = torch.from_numpy(clips.samples).to(device)
        self.start = torch.from_numpy(clips.start).to(device)
        self.size = torch.from_numpy(clips.length).to(device)
        self.filterbank = Filterbank(device)

    def __call__(self, b: dict[str, Tensor], mask_bands: bool) -> Tensor:
        speed, gain, snr, colour, tilt = (v[:, None] for v in b["effects"].unbind(1))
        clip, most = b["clip"].long(), int(b["most_samples"])
        t = torch.arange(most, device=clip.device)
        at = (t - b["lead"][:, None]) * speed
        inside = (at >= 0) & (at < self.size[clip][:, None] - 1)
        at = at.clamp(min=0) * inside
        left = at.long()
        index = self.start[clip][:, None] + left
        x0, x1 = self.samples[index].float(), self.samples[index + 1].float()
        x = (x0 + (x1 - x0) * (at - left)) * inside / 32768
        rms = (x.square().sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)).sqrt()

        f = torch.fft.rfftfreq(most, 1 / RATE, device=x.device).clamp(min=50)
        x = torch.fft.irfft(torch.fft.rfft(x) * 10 ** (tilt * (f / 1000).log10() / 20), most)
        hiss = torch.fft.irfft(torch.fft.rfft(torch.randn_like(x)) * f**-colour, most)
        hiss = hiss / hiss.square().mean(1, keepdim=True).sqrt()
        x = gain * (x + hiss * (rms + 1e-4) * 10 ** (-snr / 20) * (snr < 90))
        fbank = self.filterbank(x.clamp(-1, 1))
        if mask_bands:
            # A band of up to 10 bins says nothing, in half of the sounds.
            n = len(fbank)
            first = torch.randint(0, 80, (n, 1), device=x.device)
            width = torch.randint(-10, 11, (n, 1), device=x.device)
            bins = torch.arange(80, device=x.device)
            hidden = (bins >= first) & (bins < first + width)
            fbank = torch.where(hidden[:, None], fbank.mean((1, 2), keepdim=True), fbank)
        return fbank


class Feeder:
    """Batches on the device, one ahead, by a thread."""

    def __init__(self, loader: Loader, device: torch.device):
        self.queue: Queue = Queue(2)
        self.device = device
        threading.Thread(target=self._run, args=(loader,), daemon=True).start()

    def _run(self, loader: Loader):
        if self.device.type != "cuda":
            for arrays in loader:
                self.queue.put(to_device(arrays, self.device))
        stream, main = torch.cuda.Stream(), torch.cuda.default_stream()
        for arrays in loader:
            with torch.cuda.stream(stream):
                b = to_device(arrays, self.device)
                for t in (t for t in b.values() if isinstance(t, Tensor)):
                    t.record_stream(main)
                b["voiced"][0].record_stream(main)
            stream.synchronize()
            self.queue.put(b)

    def next(self) -> dict:
        return self.queue.get()


def to_device(arrays: dict, device: torch.device) -> dict:
    b = {k: torch.tensor(v).to(device) if hasattr(v, "dtype") else v for k, v in arrays.items()}
    b["frames"] = (b["length"] - 400) // 160 + 1
    # The sounds that say something, and on the host how long they are and how long what they say.
    some = np.flatnonzero(arrays["words_length"])
    host = (
        torch.from_numpy(x[some].astype(np.int64))
        for x in ((arrays["length"] - 400) // 160 + 1, arrays["words_length"], arrays["letters_length"])
    )
    b["voiced"] = (torch.from_numpy(some).to(device), *host)
    # Few different lengths: each costs a plan for the Fourier transform.
    b["most_samples"] = -(-int(arrays["length"].max(initial=2400)) // 8000) * 8000
    return b


def is_matrix(name: str, p: Tensor) -> bool:
    """What Muon takes: the weights of layers between others. Tables, biases and what reads pixels and sounds are
    left to AdamW."""
    first = ("patch_embedding", "conv.0.", "embed_tokens", "position_embedding", "class_embedding", "pos_bias")
    return p.dim() > 1 and not any(part in name for part in first)


class Trainer:
    def __init__(self, cfg: dict, clips: Clips, device: torch.device, rate: float, compiled: bool):
        self.cfg, self.device, self.peak_rate = cfg, device, rate
        self.vita = Vita(cfg)
        init_weights(self.vita, SEED)
        self.helpers = Helpers(cfg)
        self.vita.to(device), self.helpers.to(device)
        self.vita.model.audio_encoder.encoder.enc[0].core.conv.to(memory_format=torch.channels_last)
        self.ears = Ears(clips, device)
        self.see, self.hear, self.think = self.vita.see, self.vita.hear, self.vita.think_aloud
        if compiled:
            self.see, self.think = (torch.compile(f) for f in (self.see, self.think))
        matrices = [p for name, p in self.vita.named_parameters() if is_matrix(name, p)]
        rest = [p for p in self.parameters() if not any(p is m for m in matrices)]
        self.optimizers = [
            Muon(matrices, rate, WEIGHT_DECAY),
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
                    {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
                ],
                lr=rate,
                betas=(0.9, 0.98),
                fused=device.type == "cuda",
            ),
        ]
        self.ema = deepcopy(self.vita).requires_grad_(False)
        self.step = 0
        self.started = False
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=device).view(
            2, 1, 3, 1, 1
        )
        self.normalise = lambda tiles: (tiles.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def parameters(self) -> list[nn.Parameter]:
        return [*self.vita.parameters(), *self.helpers.parameters()]

    def half(self):
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def losses(self, b: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Answer loss per token, the encoders' own losses, and which tokens are right."""

        def settled(x: Tensor) -> Tensor:
            """Encoders that know their trade listen to new heads only when these have learnt something."""
            return x.detach() if self.started and self.step < WARMUP_STEPS else x

        with torch.no_grad():
            pixels = self.normalise(b["tiles"])
            fbank = self.ears(b, mask_bands=True) if len(b["clip"]) else None
        with self.half():
            hidden, rows = self.see(pixels)
            media, speech = rows.flatten(0, 1), torch.zeros((), device=self.device)
            if fbank is not None:
                _, encoded, heard = self.hear(fbank, b["frames"])
                media = torch.cat([media, heard[:, : b["sound_rows"]].flatten(0, 1)])
            x = self.vita.merge(b["ids"], media)
            y, held = self.think(x, self.vita.rotation(x), KNOWS_WHOSE)
            logits = self.vita.logits(y.flatten(0, 1).index_select(0, b["at"]))
            patch = self.helpers.picture_loss(settled(hidden), settled(rows), b)
            if len(b["whose"]):
                patch = patch + WEIGHT_WHOSE * self.helpers.whose_loss(settled(held), b["whose"])
        if fbank is not None:
            encoded, heard = settled(encoded.float()), settled(heard.float())
            speech = self.helpers.speech_loss(self.vita, encoded, heard, b)
        target = b["target"].long()
        return F.cross_entropy(logits, target, reduction="none"), patch, speech, logits.argmax(-1) == target

    def train_step(self, b: dict, progress: float) -> dict[str, Tensor]:
        rate = (
            self.peak_rate
            * min(1, (self.step + 1) / WARMUP_STEPS)
            * 0.5
            * (1 + math.cos(math.pi * min(progress, 1)))
        )
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = rate
        answer, patch, speech, right = self.losses(b)
        loss = answer.mean() + patch + speech
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(EMA, self.step / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.vita.parameters()), 1 - keep)
        return {
            "answer": answer.detach().mean(),
            "patch": patch.detach(),
            "speech": speech.detach(),
            "exact": exact(right, b).float().mean(),
        }

    def state(self) -> dict:
        return {
            "vita": self.vita.state_dict(),
            "helpers": self.helpers.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
        }

    def load_state(self, state: dict):
        for name in ("vita", "helpers", "ema"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, kept in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(kept)
        self.step = state["step"]

    @torch.no_grad()
    def evaluate(self, batches: list[dict]) -> dict:
        """Exact answers to held-out questions with the averaged weights as they are stored, in f32. Given the
        true beginning, an answer whose every token comes first is the one that greedy decoding gives."""
        stored = deepcopy(self.ema).eval()
        for p in stored.parameters():
            p.copy_(p.bfloat16().float())
        tally: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        for arrays in batches:
            b = to_device(arrays, self.device)
            _, rows = stored.see(self.normalise(b["tiles"]))
            heard = stored.hear(self.ears(b, mask_bands=False), b["frames"])[2]
            media = torch.cat([rows.flatten(0, 1), heard[:, : b["sound_rows"]].flatten(0, 1)])
            y = stored.think(stored.merge(b["ids"], media)).flatten(0, 1)[b["at"]]
            right = stored.logits(y).argmax(-1) == b["target"]
            marks = right[torch.cat([b["owner"][:1] == 0, b["owner"][1:] != b["owner"][:-1]])]
            for ok, mark, kind, way in zip(
                exact(right, b).tolist(), marks.tolist(), b["kinds"], b["ways"].tolist()
            ):
                for group, name, hit in (
                    ("way", WAYS[way], ok),
                    ("mark", WAYS[way], mark),
                    (f"kind, {WAYS[way]}", kind, ok),
                ):
                    tally[group][name][0] += hit
                    tally[group][name][1] += 1
        return {
            g: {n: {"right": r, "of": of, "share": round(r / of, 4)} for n, (r, of) in sorted(names.items())}
            for g, names in sorted(tally.items())
        }


def exact(right: Tensor, b: dict) -> Tensor:
    """Whether all tokens of each answer are right."""
    wrong = torch.zeros(len(b["kinds"]), device=right.device).index_add_(
        0, b["owner"].long(), (~right).float()
    )
    return wrong == 0


def measure_cmvn(trainer: Trainer, b: dict) -> None:
    """Mean and deviation of the mel bins over one batch of speech, as the encoder's fixed normalisation."""
    fbank = trainer.ears(b, mask_bands=False)
    valid = torch.arange(fbank.shape[1], device=fbank.device) < b["frames"][:, None]
    x = fbank[valid]
    for vita in (trainer.vita, trainer.ema):
        cmvn = vita.model.audio_encoder.encoder.global_cmvn
        # As stored: bf16.
        cmvn.mean.copy_(x.mean(0).bfloat16().float())
        cmvn.istd.copy_((1 / x.std(0)).bfloat16().float())


def profile_steps(trainer: Trainer, feeder: Feeder, say: Callable[[str], None]) -> None:
    """Three steps after ten: seconds of each, and the operations that take the most on host and device."""

    def step() -> None:
        trainer.train_step(feeder.next(), 0.1)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(10):
        step()
    with torch.profiler.profile() as profile:
        for _ in range(3):
            start = time.monotonic()
            step()
            say(f"a step of {time.monotonic() - start:.3f} s")
    for key in ("self_cuda_time_total", "self_cpu_time_total"):
        print(profile.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=70))


def export(trainer: Trainer, pack: Path, out: Path) -> None:
    save(trainer.ema, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pack / name, out / name)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pack", type=Path, required=True, help="folder that speech.py and tokenizer.py wrote"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the steps and the schedule of --state"
    )
    parser.add_argument(
        "--start", type=Path, metavar="MODEL", help="begin with the weights of this checkpoint"
    )
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="highest learning rate [%(default)s]")
    parser.add_argument(
        "--state", type=Path, help="where to keep what --resume needs, 125 MB [default: OUT/state.pt]"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the vision tower and the language model"
    )
    parser.add_argument(
        "--scale", type=float, default=1, help="size of batches; 1 is for a GPU of 80 GB or more"
    )
    parser.add_argument(
        "--profile", action="store_true", help="print where the time of three steps goes, and stop"
    )
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--noises", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many")
    args = parser.parse_args()
    begin = time.monotonic()

    def say(text: str):
        print(f"[{time.monotonic() - begin:6.1f} s] {text}", flush=True)

    need_file(args.pack / "speech.json", f"python speech.py {args.pack} --per-text 20")
    need_file(args.pack / "tokenizer.json", f"python tokenizer.py {args.pack}")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SEED)
    torch.backends.cudnn.allow_tf32 = False  # f32 is for the evaluation, which should be exact
    kept = args.state or args.out / "state.pt"
    state = torch.load(kept, map_location="cpu", weights_only=True) if args.resume else None
    first = state["step"] if state else 0

    template = Template(args.pack / "tokenizer.json")
    cfg = CONFIG | {"eos_token_id": [template.im_end, template.pad]}
    vision = cfg["vision_config"]
    clips = Clips.read(args.pack, args.noises, args.workers + 2)
    say(f"{len(clips.text)} sounds, {clips.length.sum() / RATE / 3600:.1f} hours")
    shapes = [s.scaled(args.scale) for s in (FEW_TILES, MANY_TILES)]
    room = slot_bytes(shapes, vision["image_size"])

    def maker(held_out: bool):
        generator = Generator(template, clips, vision["image_size"], vision["patch_size"], held_out)
        return lambda seed: generator.batch(seed, mixed(seed).scaled(args.scale))

    held = Loader(maker(True), range(EVALUATION_BATCHES), args.workers, room)
    held_out = [{k: v.copy() if hasattr(v, "dtype") else v for k, v in b.items()} for b in held]
    held.stop()
    loader = Loader(maker(False), range(first, 10**6), args.workers, room)
    say(f"{len(held_out)} batches to evaluate with, {sum(len(b['kinds']) for b in held_out)} answers")

    trainer = Trainer(cfg, clips, device, args.rate, args.compile)
    feeder = Feeder(loader, device)
    if state:
        trainer.load_state(state)
    elif args.start:
        for vita in (trainer.vita, trainer.ema):
            vita.load_state_dict(load(args.start).state_dict())
        trainer.started = True
    else:
        measure_cmvn(trainer, to_device(held_out[0], device))
    size = sum(p.numel() for p in trainer.vita.parameters())
    say(f"{size / 1e6:.2f} M parameters on {device}, from step {first}")

    def keep():
        half_written = kept.with_suffix(".tmp")
        torch.save(trainer.state() | {"progress": progress, "curve": curve}, half_written)
        os.replace(half_written, kept)
        export(trainer, args.pack, args.out / "model")
        (args.out / "curve.json").write_text(json.dumps(curve))

    reserve = min(20.0, args.minutes * 6)
    budget = args.minutes * 60 - reserve
    start = time.monotonic() - begin
    curve = state["curve"] if state else []
    done_before = state["progress"] if state else 0.0
    progress = done_before
    waited, saved, noted, answers = 0.0, time.monotonic(), time.monotonic(), 0
    sums: dict[str, Tensor] = {}
    count = 0
    if args.profile:
        profile_steps(trainer, feeder, say)
        os._exit(0)
    while (elapsed := time.monotonic() - begin) < budget and trainer.step < first + args.steps:
        before = time.monotonic()
        b = feeder.next()
        waited += time.monotonic() - before
        progress = done_before + (1 - done_before) * (elapsed - start) / (budget - start)
        done = trainer.train_step(b, progress)
        answers += len(b["kinds"])
        count += 1
        for k, v in done.items():
            sums[k] = sums.get(k, 0) + v
        if trainer.step in (1, 10) or trainer.step % 100 == 0 or args.scale < 0.2 and trainer.step % 5 == 0:
            means = {k: round((v / count).item(), 4) for k, v in sums.items()}
            seconds = time.monotonic() - noted
            curve.append({"step": trainer.step, "seconds": round(elapsed, 1), **means})
            memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
            say(
                f"step {trainer.step}: "
                + ", ".join(f"{k} {v:.3f}" for k, v in means.items())
                + f"; {count / seconds:.2f} steps/s, {answers / seconds:.0f} answers/s, "
                f"waited {waited / seconds:.0%} for data, {memory:.1f} GiB"
            )
            sums, count, answers, waited, noted = {}, 0, 0, 0.0, time.monotonic()
        if time.monotonic() - saved > SAVE_SECONDS:
            keep()
            saved = time.monotonic()
    loader.stop()
    keep()
    say(f"trained {trainer.step} steps")
    scores = trainer.evaluate(held_out)
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1))
    for group, names in scores.items():
        say(group + ": " + ", ".join(f"{n} {s['share']:.3f} of {s['of']}" for n, s in names.items()))
    os._exit(0)  # the feeder may be waiting for a worker that is gone


if __name__ == "__main__":
    main()
