"""A byte-level BPE in the form of Qwen2.5's, small enough for this model's few hundred words, and the chat
template.

`tokenizer.py OUT` trains it on the task's own texts and writes tokenizer.json and tokenizer_config.json.
"""

import argparse
import json
import random
from functools import lru_cache
from pathlib import Path

from needs import need_modules

need_modules("tokenizers")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import questions

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# What the model took a question for; the first token of every answer.
SPOKEN, WRITTEN, NOISE = "☞", "☜", "☟"

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SYSTEM_TEXT = (
    "You are Vita, an assistant that reads, listens and answers in writing. "
    "Answer truthfully and to the point, in the language of the question."
)
SYSTEM_IMAGE = (
    "You are Vita, an assistant that sees, listens and answers in writing. "
    "Look closely at the image and answer from what it shows, truthfully and to the point, "
    "in the language of the question."
)


def spoken_words(text: str) -> str:
    """What can be heard of a text, with a space before each word, as in the middle of a sentence."""
    return "".join(
        " " + word
        for word in text.lower().replace("'", "").translate(str.maketrans(",.?!-", "     ")).split()
    )


def corpus() -> list[str]:
    """The task's texts, the common ones often. Chatter is heard and never read: it needs letters, not
    words."""
    asked = questions.inventory()
    texts = [f"system\n{SYSTEM_TEXT}", f"system\n{SYSTEM_IMAGE}", "user\n", "assistant\n", "\n"] * 200
    texts += (
        asked * 4 + [f"user\n{t[0].lower()}{t[1:]}" for t in asked] * 2 + [spoken_words(t) for t in asked] * 4
    )
    texts += list(questions.TALK) * 20 + [questions.NO_PICTURE] * 20
    rng = random.Random(1)
    from pictures import make_scene

    for _ in range(1500):
        scene = make_scene(rng, 140)
        texts += [
            questions.ask(rng, scene).answer,
            questions.ask_two(rng, (scene, make_scene(rng, 140))).answer,
        ]
    return texts


def train(vocab: int) -> Tokenizer:
    """`vocab` counts the bytes, the merges and the six added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 6,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in (END_OF_TEXT, IM_START, IM_END)]
    )
    # The marks are ordinary text in Qwen2.5.
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (SPOKEN, WRITTEN, NOISE)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(i): {
            "content": t.content,
            "special": t.special,
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for i, t in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


class Template:
    """The chat template of VITA-1.5 as ids. Media take their places as negative ids, given by the caller."""

    def __init__(self, file: Path):
        self.tokenizer = Tokenizer.from_file(str(file))
        self.im_start, self.im_end, self.pad = (
            self.tokenizer.token_to_id(t) for t in (IM_START, IM_END, END_OF_TEXT)
        )
        self.mark = {m: self.tokenizer.token_to_id(m) for m in (SPOKEN, WRITTEN, NOISE)}

    @lru_cache(maxsize=100_000)
    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def begin(self, pictures: bool) -> list[int]:
        text = SYSTEM_IMAGE if pictures else SYSTEM_TEXT
        return [self.im_start, *self.encode(f"system\n{text}"), self.im_end, *self.encode("\n")]

    def turn(self, text: str, tiles: list[int], sound: list[int]) -> list[int]:
        """Up to where the answer begins; a later turn has a line break before it."""
        user = self.encode(f"user\n{text}")
        if tiles:
            user = (*self.encode("user\n"), *tiles, *self.encode(f"\n{text}"))
        return [
            self.im_start,
            *user,
            *sound,
            self.im_end,
            *self.encode("\n"),
            self.im_start,
            *self.encode("assistant\n"),
        ]

    def answer(self, mark: str, text: str) -> list[int]:
        return [self.mark[mark], *self.encode(text), self.im_end]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=int, default=640)
    args = parser.parse_args()
    save(train(args.vocab), args.out)
