"""Batches of dialogues: pictures, sounds and text as the model gets them, made by worker processes.

A batch holds few pictures and several dialogues about each, because the vision tower costs the most. Media
stand in the sequence as negative ids, which `Vita.merge` turns into rows."""

import mmap
import pickle
import random
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np

import questions
from model import rows_of_sound
from pictures import Scene, label_patches, make_scene, render, tile
from questions import Query
from speech import RATE, Clips, frame_count
from tokenizer import NOISE, SPOKEN, WRITTEN, Template, spoken_words

LETTERS = {c: i + 1 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")}
WAYS = ("written", "spoken", "noise", "no question")


@dataclass(frozen=True)
class Shape:
    """How a batch is made up: pictures with a number of tiles in a range, dialogues about each, dialogues
    about two of them, dialogues without a picture, and the rows of a sequence."""

    pictures: int
    tiles: range
    each: int
    pairs: int
    blind: int
    rows: int

    def scaled(self, by: float) -> "Shape":
        def some(n: int) -> int:
            return max(1, round(n * by)) if n else 0

        return Shape(
            some(self.pictures), self.tiles, self.each, some(self.pairs), some(self.blind), self.rows
        )


FEW_TILES = Shape(pictures=128, tiles=range(1, 6), each=3, pairs=80, blind=64, rows=320)
MANY_TILES = Shape(pictures=48, tiles=range(6, 14), each=4, pairs=0, blind=0, rows=512)


@dataclass
class Sound:
    """A clip and what is done to it; lengths in samples."""

    clip: int
    speed: float = 1.0
    lead: int = 0
    length: int = 0
    gain: float = 1.0
    # Added noise: signal to noise in dB, and the exponent of its spectrum.
    snr: float = 99.0
    colour: float = 0.0
    # dB per decade of frequency.
    tilt: float = 0.0

    @property
    def frames(self) -> int:
        return frame_count(self.length)


@dataclass
class Turn:
    query: Query
    way: str
    pictures: list[int] = field(default_factory=list)
    sound: Sound | None = None


class Generator:
    """Everything random about the data, as a function of (seed, held_out)."""

    def __init__(self, template: Template, clips: Clips, size: int, patch: int, held_out: bool):
        self.template, self.size, self.patch, self.held_out = template, size, patch, held_out
        self.lengths = clips.length
        self.text = clips.text
        self.asked: dict[str, list[int]] = {}
        self.chatter, self.noise = [], []
        for i in np.flatnonzero(clips.held_out == held_out):
            if clips.question[i]:
                self.asked.setdefault(clips.text[i], []).append(int(i))
            else:
                (self.chatter if clips.text[i] else self.noise).append(int(i))
        # Rendered pictures that later batches ask about again.
        self.pool: dict[range, list[tuple]] = {}

    def sound(self, rng: random.Random, clip: int) -> Sound:
        strong = 0.4 if self.held_out else 1.0
        speed = 1.0 if self.held_out else rng.uniform(0.9, 1.12)
        lead, tail = (int(rng.random() ** 2 * strong * 0.7 * RATE) for _ in range(2))
        return Sound(
            clip,
            speed,
            lead,
            max(lead + int((self.lengths[clip] - 2) / speed) + tail, 2400),
            gain=10 ** (rng.uniform(-18, 4) * strong / 20),
            snr=99.0 if rng.random() < 0.35 else rng.uniform(20 if self.held_out else 8, 40),
            colour=rng.uniform(0, 1.2),
            tilt=0.0 if self.held_out else rng.uniform(-5, 5),
        )

    def voiced(self, rng: random.Random, query: Query, spoken: bool, pictures=()) -> Turn:
        if not spoken:
            return Turn(query, "written", list(pictures))
        return Turn(query, "spoken", list(pictures), self.sound(rng, rng.choice(self.asked[query.text])))

    def noise_turn(self, rng: random.Random, pictures=()) -> Turn:
        chatter = rng.random() < 0.6
        clip = rng.choice(self.chatter if chatter else self.noise)
        return Turn(
            Query("other speech" if chatter else "noise", "", ""),
            "noise",
            list(pictures),
            self.sound(rng, clip),
        )

    def about(self, rng: random.Random, scene: Scene, picture: int) -> list[Turn]:
        """A dialogue about one picture: up to five turns, some of which refer back."""
        turns: list[Turn] = []
        spoken = rng.choice((0.1, 0.5, 0.9))
        if rng.random() < 0.05:
            turns.append(self.voiced(rng, questions.small_talk(rng), rng.random() < spoken))
        shown = [picture]
        for _ in range(rng.choice((1, 2, 3, 4, 5))):
            if rng.random() < 0.08:
                turns.append(self.noise_turn(rng, shown))
            elif shown and rng.random() < 0.06:
                turns.append(Turn(questions.ask(rng, scene, "describe"), "no question", shown))
            else:
                last = turns[-1].query if turns else None
                again = questions.ask_again(rng, scene, last) if last and rng.random() < 0.5 else None
                turns.append(
                    self.voiced(rng, again or questions.ask(rng, scene), rng.random() < spoken, shown)
                )
            shown = []
        return turns

    def about_two(
        self, rng: random.Random, scenes: tuple[Scene, Scene], pictures: tuple[int, int]
    ) -> list[Turn]:
        spoken, shown, turns = rng.choice((0.1, 0.5, 0.9)), list(pictures), []
        for _ in range(rng.randint(1, 4)):
            turns.append(self.voiced(rng, questions.ask_two(rng, scenes), rng.random() < spoken, shown))
            shown = []
        return turns

    def blind(self, rng: random.Random) -> list[Turn]:
        spoken, turns = rng.choice((0.1, 0.5, 0.9)), []
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.45:
                turns.append(self.noise_turn(rng))
            else:
                query = questions.small_talk(rng) if rng.random() < 0.5 else questions.ask_blindly(rng)
                turns.append(self.voiced(rng, query, rng.random() < spoken))
        return turns

    def picture(self, rng: random.Random, tiles: range) -> tuple:
        scene = make_scene(rng, self.size, tiles)
        return scene, tile(render(scene), self.size), *label_patches(scene, self.size, self.patch)

    def pictures(self, rng: random.Random, shape: Shape) -> list[tuple]:
        """Half of them new, half from the pool; for evaluation all new."""
        if self.held_out:
            return [self.picture(rng, shape.tiles) for _ in range(shape.pictures)]
        pool = self.pool.setdefault(shape.tiles, [])
        fresh = [
            self.picture(rng, shape.tiles) for _ in range(shape.pictures // 2 if pool else 2 * shape.pictures)
        ]
        pool += fresh
        del pool[: max(0, len(pool) - 3 * shape.pictures)]
        return rng.sample(pool, shape.pictures)

    def batch(self, seed: int, shape: Shape) -> dict[str, np.ndarray]:
        rng = random.Random(f"{self.held_out} {seed}")
        pictures = self.pictures(rng, shape)
        scenes = [p[0] for p in pictures]
        counts = [len(p[1]) for p in pictures]
        first_tile = np.concatenate([[0], np.cumsum(counts)])
        dialogues = [self.about(rng, scene, i) for i, scene in enumerate(scenes) for _ in range(shape.each)]
        single = [i for i, n in enumerate(counts) if n == 1]
        if len(single) > 1:
            for _ in range(shape.pairs):
                i, j = rng.sample(single, 2)
                dialogues.append(self.about_two(rng, (scenes[i], scenes[j]), (i, j)))
        dialogues += [self.blind(rng) for _ in range(shape.blind)]

        per_tile = (self.size // self.patch) ** 2 // 4
        sounds: list[Sound] = []
        rows = [self.lay_out(turns, first_tile, per_tile, shape.rows, sounds) for turns in dialogues]
        return self.collate(pictures, sounds, rows, per_tile)

    def lay_out(self, turns: list[Turn], first_tile, per_tile: int, limit: int, sounds: list[Sound]):
        """Ids and answers of one dialogue, as many of its turns as fit, and which rows are whose where there are
        two pictures. Rows of sounds are (sound, row) pairs as long as nobody knows how many rows the tiles of
        the batch take."""
        t, ids, answers, whose = self.template, [], [], []
        for turn in turns:
            tiles = [
                -1 - row
                for p in turn.pictures
                for row in range(first_tile[p] * per_tile, first_tile[p + 1] * per_tile)
            ]
            text = turn.query.text if turn.way == "written" else ""
            if turn.way == "written" and not self.held_out:
                text = questions.typed(random.Random(len(ids) * 7919 + len(sounds)), text)
            sound = []
            if turn.sound:
                sound = [(len(sounds), r) for r in range(rows_of_sound(turn.sound.frames))]
            mark = {"spoken": SPOKEN, "noise": NOISE}.get(turn.way, WRITTEN)
            prompt = [*t.encode("\n")] if ids else t.begin(bool(tiles))
            prompt += t.turn(text, tiles, sound)
            answer = t.answer(mark, turn.query.answer)
            if ids and len(ids) + len(prompt) + len(answer) > limit:
                break
            if len(turn.pictures) == 2:
                first = len(ids) + prompt.index(tiles[0])
                boundary = (first_tile[turn.pictures[0] + 1] - first_tile[turn.pictures[0]]) * per_tile
                whose = [(first + i, int(i >= boundary)) for i in range(len(tiles))]
            ids += prompt
            answers.append((len(ids), len(ids) + len(answer), turn.query.kind, turn.way))
            ids += answer
            if turn.sound:
                sounds.append(turn.sound)
        return ids, answers, whose

    def collate(self, pictures, sounds: list[Sound], rows, per_tile: int) -> dict:
        tiles = np.concatenate([p[1] for p in pictures])
        sound_rows = max((rows_of_sound(s.frames) for s in sounds), default=0)
        base = len(tiles) * per_tile
        length = -(-max(len(ids) for ids, *_ in rows) // 32) * 32
        out = np.full((len(rows), length), self.template.pad, np.int32)
        at, target, owner, kinds, ways, whose = [], [], [], [], [], []
        for n, (ids, answers, pair) in enumerate(rows):
            whose += [(n * length + i, which) for i, which in pair]
            flat = [i if not isinstance(i, tuple) else -1 - (base + i[0] * sound_rows + i[1]) for i in ids]
            out[n, : len(flat)] = flat
            for begin, end, kind, way in answers:
                # A token is foretold one row before it stands.
                at += range(n * length + begin - 1, n * length + end - 1)
                target += flat[begin:end]
                owner += [len(kinds)] * (end - begin)
                kinds.append(kind)
                ways.append(WAYS.index(way))
        heard = [spoken_words(self.text[s.clip]) for s in sounds]
        return {
            "tiles": tiles,
            "shown": np.concatenate([p[2] for p in pictures]).astype(np.uint8),
            "centres": np.concatenate([p[3] for p in pictures]).astype(np.uint8),
            "places": np.concatenate([p[4] for p in pictures]).astype(np.uint8),
            "ids": out,
            "at": np.array(at, np.int32),
            "target": np.array(target, np.int32),
            "owner": np.array(owner, np.int32),
            # Rows of pairs of pictures, and whether they belong to the second.
            "whose": np.array(whose, np.int32).reshape(-1, 2),
            "kinds": kinds,
            "ways": np.array(ways, np.int8),
            "clip": np.array([s.clip for s in sounds], np.int32),
            "lead": np.array([s.lead for s in sounds], np.int32),
            "length": np.array([s.length for s in sounds], np.int32),
            "effects": np.array(
                [(s.speed, s.gain, s.snr, s.colour, s.tilt) for s in sounds], np.float32
            ).reshape(-1, 5),
            **ragged("words", [self.template.encode(h) if h else () for h in heard]),
            **ragged("letters", [[LETTERS[c] for c in h[1:] if c in LETTERS] for h in heard]),
            "sound_rows": sound_rows,
        }


def ragged(name: str, lists) -> dict[str, np.ndarray]:
    lengths = np.array([len(x) for x in lists], np.int32)
    out = np.zeros((len(lists), max(lengths, default=0)), np.int32)
    for i, x in enumerate(lists):
        out[i, : len(x)] = x
    return {name: out, f"{name}_length": lengths}


class Loader:
    """Batches of `seeds` in order, made by forked workers that hand over arrays in shared memory. Start it
    before threads and before CUDA."""

    SLOTS = 3

    def __init__(self, make, seeds: range, workers: int, slot_bytes: int):
        context = get_context("fork")
        self.seeds = seeds
        self.lanes = []
        for w in range(workers):
            # Not /dev/shm: containers keep that small.
            memory = mmap.mmap(-1, self.SLOTS * slot_bytes)
            ready, free = context.Queue(), context.Queue()
            for slot in range(self.SLOTS):
                free.put(slot)
            p = context.Process(
                target=self._work,
                args=(make, seeds[w::workers], memory, slot_bytes, ready, free),
                daemon=True,
            )
            p.start()
            self.lanes.append((p, memory, slot_bytes, ready, free))

    @staticmethod
    def _work(make, seeds, memory, slot_bytes, ready, free):
        for seed in seeds:
            buffers: list[pickle.PickleBuffer] = []
            head = pickle.dumps(make(seed), protocol=5, buffer_callback=buffers.append)
            slot = free.get()
            at, places = slot * slot_bytes, []
            for b in buffers:
                raw = b.raw()
                if at + raw.nbytes > (slot + 1) * slot_bytes:
                    raise MemoryError(f"a batch is larger than {slot_bytes} bytes")
                memory[at : at + raw.nbytes] = raw
                places.append((at, raw.nbytes))
                at += -(-raw.nbytes // 64) * 64
            ready.put((slot, head, places))

    def __iter__(self):
        """Arrays are valid until the next one is asked for."""
        for i in range(len(self.seeds)):
            process, memory, _, ready, free = self.lanes[i % len(self.lanes)]
            while True:
                try:
                    slot, head, places = ready.get(timeout=5)
                    break
                except Exception as e:
                    if not process.is_alive():
                        raise RuntimeError("a worker died") from e
            view = memoryview(memory)
            yield pickle.loads(head, buffers=[view[at : at + n] for at, n in places])
            free.put(slot)

    def stop(self):
        for process, *_ in self.lanes:
            process.terminate()


def slot_bytes(shapes: list[Shape], size: int) -> int:
    """Room for the largest batch, whose bulk are the tiles."""
    most = max(s.pictures * (s.tiles[-1]) for s in shapes)
    return most * (size * size * 3 + 400) + (24 << 20)


def mixed(seed: int) -> Shape:
    """Which shape a batch has: two in three have few tiles."""
    return MANY_TILES if seed % 3 == 2 else FEW_TILES
