"""Questions about pictures, their true answers, small talk, and speech that is no question to the model.

A question has a kind, which names how its answer is found and how scores are grouped. All texts of all
questions can be listed (`inventory`), because each has to be spoken by many voices beforehand."""

import random
from dataclasses import dataclass
from itertools import product

from pictures import COLOURS, SHAPES, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

# {c} a colour, {s} a shape, {p} its plural, {a} the noun with its article, {n} first or second.
TEMPLATES = {
    "count": (
        "How many shapes are there?",
        "How many shapes do you see?",
        "How many shapes are in the picture?",
        "Count the shapes.",
    ),
    "count colour": ("How many {c} shapes are there?", "How many shapes are {c}?"),
    "count shape": ("How many {p} are there?", "How many {p} do you see?"),
    "count both": ("How many {c} {p} are there?",),
    "colour": ("What colour is the {s}?", "Which colour is the {s}?", "What is the colour of the {s}?"),
    "shape": ("What shape is the {c} one?", "Which shape is {c}?"),
    "where shape": ("Where is the {s}?",),
    "where colour": ("Where is the {c} one?",),
    "where both": ("Where is the {c} {s}?",),
    "exists shape": ("Is there {a}?", "Do you see {a}?"),
    "exists colour": ("Is there anything {c}?",),
    "exists both": ("Is there {a}?", "Do you see {a}?"),
    "describe": (
        "Describe the picture.",
        "What do you see?",
        "What is in the picture?",
        "What does the picture show?",
    ),
    "two more": ("Which picture has more shapes?", "Which picture shows more shapes?"),
    "two which": ("Which picture has {a}?", "Which picture shows {a}?"),
    "two count": ("How many shapes are in the {n} picture?",),
    "two colour": ("What colour is the {s} in the {n} picture?",),
    "then colour": ("And what colour is it?", "What colour is it?"),
    "then shape": ("And what shape is it?", "What shape is it?"),
    "then where": ("And where is it?", "Where is it?"),
    "then other": ("And the {s}?",),
}

# How often a kind is asked first, of one picture.
WEIGHTS = {
    "count": 3,
    "count colour": 2.5,
    "count shape": 2.5,
    "count both": 1.5,
    "colour": 4,
    "shape": 3,
    "where shape": 4,
    "where colour": 4,
    "where both": 3,
    "exists shape": 1.5,
    "exists colour": 1.5,
    "exists both": 2.5,
    "describe": 6,
}
WEIGHTS_TWO = {"two more": 3, "two which": 3, "two count": 2, "two colour": 3}

NO_PICTURE = "I see no picture. Please show me one."
TALK = {
    "Hello! Show me a picture and ask me about it.": ("Hello!", "Hi!", "Good morning!"),
    "I am a tiny Vita. I look, I listen and I answer.": (
        "Who are you?",
        "What are you?",
        "What is your name?",
    ),
    "I count shapes and name their colours and places.": ("What can you do?", "Can you help me?"),
    "Very well, thank you.": ("How are you?",),
    "You are welcome.": ("Thank you.", "Thanks!"),
    "Goodbye!": ("Goodbye.", "Bye!"),
}


@dataclass(frozen=True)
class Query:
    kind: str
    text: str
    answer: str
    # What "it" is in the next question.
    it: Thing | None = None


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def fill(template: str, colour: str = "", shape: str = "", which: str = "") -> str:
    noun = f"{colour} {shape}".strip() or "shape"
    return template.format(c=colour, s=shape, p=plural(shape) if shape else "", a=a(noun), n=which)


def slots(kind: str) -> list[tuple[str, str, str]]:
    """The (colour, shape, which) that the templates of a kind may be filled with."""
    texts = TEMPLATES[kind]
    both = kind.endswith("both")
    colours = tuple(COLOURS) if both or any("{c}" in t for t in texts) else ("",)
    shapes = SHAPES if both or any("{s}" in t or "{p}" in t or "{a}" in t for t in texts) else ("",)
    which = ("first", "second") if any("{n}" in t for t in texts) else ("",)
    return list(product(colours, shapes, which))


def inventory() -> list[str]:
    """Every question as it is spoken."""
    texts = [fill(t, *slot) for kind, ts in TEMPLATES.items() for slot in slots(kind) for t in ts]
    return sorted(set(texts) | {t for ts in TALK.values() for t in ts})


def place(thing: Thing) -> str | None:
    """One of nine places; none near a border between them, where people would disagree."""

    def third(x: float, names: tuple[str, str, str]) -> str | None:
        return None if min(abs(x - 1 / 3), abs(x - 2 / 3)) < 0.05 else names[int(3 * x)]

    row, column = third(thing.y, ("top", "", "bottom")), third(thing.x, ("left", "", "right"))
    if row is None or column is None:
        return None
    match f"{row} {column}".strip():
        case "":
            return "in the middle"
        case ("left" | "right") as side:
            return f"on the {side}"
        case corner:
            return f"at the {corner}"


def there_are(n: int, one: str, many: str) -> str:
    return f"There is one {one}." if n == 1 else f"There are {NUMBERS[n]} {many}."


def answer(kind: str, scene: Scene, colour: str, shape: str) -> tuple[str, Thing | None] | None:
    """The answer and what "it" is from then on; nothing when the question would be a poor one."""
    found = [t for t in scene.things if colour in ("", t.colour) and shape in ("", t.shape)]
    n, noun = len(found), f"{colour} {shape or 'shape'}".strip()
    nouns = f"{colour} {plural(shape) if shape else 'shapes'}".strip()
    it = found[0] if n == 1 else None
    none = f"There is no {noun}." if shape else f"There is nothing {colour}."
    match kind.split()[0]:
        case "count":
            return there_are(n, noun, nouns), it
        case "colour":
            colours = list(dict.fromkeys(t.colour for t in found))
            if n == 0:
                return none, None
            return (
                (f"The {noun} is {colours[0]}.", it)
                if n == 1
                else (f"The {nouns} are {listed(colours)}.", None)
                if n == 2
                else None
            )
        case "shape":
            if n == 0:
                return none, None
            return (f"It is {a(found[0].shape)}.", it) if n == 1 else None
        case "where":
            if n == 0:
                return none, None
            return (f"It is {place(it)}.", it) if it and place(it) else None
        case "exists":
            if n == 0:
                return "No, " + none[0].lower() + none[1:], None
            one = f"{found[0].colour} {found[0].shape}" if not shape else noun
            return (
                ("Yes, there is " + a(one) + ".", it)
                if n == 1
                else (f"Yes, there are {NUMBERS[n]} {nouns}.", None)
            )
        case "describe":
            text = listed([a(f"{t.colour} {t.shape}") for t in scene.things])
            return text[0].upper() + text[1:] + ".", it
    raise ValueError(kind)


def choose_slot(rng: random.Random, kind: str, scene: Scene) -> tuple[str, str, str]:
    """Mostly what the picture shows; for yes and no, each as often."""
    slot = rng.choice(slots(kind))
    if rng.random() < (0.5 if kind.startswith("exists") else 0.8):
        thing = rng.choice(scene.things)
        slot = (slot[0] and thing.colour, slot[1] and thing.shape, slot[2])
    return slot


def weighted(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def ask(rng: random.Random, scene: Scene, kind: str | None = None) -> Query:
    """A question about one picture."""
    while True:
        k = kind or weighted(rng, WEIGHTS)
        colour, shape, _ = choose_slot(rng, k, scene)
        if found := answer(k, scene, colour, shape):
            return Query(k, fill(rng.choice(TEMPLATES[k]), colour, shape), *found)


def ask_two(rng: random.Random, scenes: tuple[Scene, Scene], kind: str | None = None) -> Query:
    """A question that needs to tell two pictures apart."""
    while True:
        k = kind or weighted(rng, WEIGHTS_TWO)
        _, shape, which = choose_slot(rng, k, rng.choice(scenes))
        text = fill(rng.choice(TEMPLATES[k]), "", shape, which)
        scene = scenes[which == "second"]
        if k == "two more":
            n, m = (len(s.things) for s in scenes)
            return Query(
                k, text, "Both show as many." if n == m else f"The {'first' if n > m else 'second'} one."
            )
        if k == "two which":
            first, second = (any(t.shape == shape for t in s.things) for s in scenes)
            return Query(
                k,
                text,
                {
                    (True, True): "Both of them.",
                    (True, False): "The first one.",
                    (False, True): "The second one.",
                    (False, False): "None of them.",
                }[first, second],
            )
        if found := answer(k.split()[1], scene, "", shape):
            return Query(k, text, *found)


def ask_again(rng: random.Random, scene: Scene, last: Query) -> Query | None:
    """A question that refers to the answer before."""
    if last.kind in ("colour", "where shape") and rng.random() < 0.4:
        things = [t for t in scene.things if t is not last.it]
        if things:
            shape = rng.choice(things).shape
            if found := answer(last.kind, scene, "", shape):
                return Query("then other", fill(TEMPLATES["then other"][0], "", shape), *found)
    if last.it is None:
        return None
    known = {"colour": "colour", "shape": "shape", "where": "where"}.get(last.kind.split()[0])
    what = rng.choice([k for k in ("colour", "shape", "where") if k != known])
    replies = {"colour": last.it.colour, "shape": a(last.it.shape), "where": place(last.it)}
    if replies[what] is None:
        return None
    text = rng.choice(TEMPLATES[f"then {what}"])
    return Query(f"then {what}", text, f"It is {replies[what]}.", last.it)


def small_talk(rng: random.Random) -> Query:
    reply = rng.choice(list(TALK))
    return Query("small talk", rng.choice(TALK[reply]), reply)


def ask_blindly(rng: random.Random) -> Query:
    """A question about a picture that nobody has shown."""
    kind = weighted(rng, WEIGHTS | WEIGHTS_TWO)
    return Query("no picture", fill(rng.choice(TEMPLATES[kind]), *rng.choice(slots(kind))), NO_PICTURE)


def typed(rng: random.Random, text: str) -> str:
    """As people type: now and then without a capital or the mark at the end."""
    if rng.random() < 0.25:
        text = text[0].lower() + text[1:]
    return text.rstrip("?.!") if rng.random() < 0.25 else text


# Speech that is not for the model: statements, orders and questions about something else. Words of the task
# occur in it, so that a single word never gives it away.
_NOUNS = (
    "train",
    "garden",
    "kitchen",
    "teacher",
    "doctor",
    "window",
    "river",
    "bridge",
    "letter",
    "table",
    "market",
    "brother",
    "sister",
    "music",
    "dinner",
    "weather",
    "office",
    "ticket",
    "bottle",
    "village",
    "camera",
    "engine",
    "holiday",
    "meeting",
    "newspaper",
    "umbrella",
    "dog",
    "cat",
    "horse",
    "farmer",
    "captain",
    "neighbour",
    "car",
    "house",
    "door",
    "coat",
    "dress",
    "bicycle",
    "apple",
    "flower",
    "boat",
    "lamp",
    "chair",
    "cup",
    "phone",
)
_VERBS = (
    "saw",
    "found",
    "bought",
    "forgot",
    "painted",
    "carried",
    "opened",
    "broke",
    "cleaned",
    "followed",
    "liked",
    "missed",
    "needed",
    "sold",
    "watched",
    "heard",
    "moved",
    "lost",
)
_WHEN = (
    "yesterday",
    "in the morning",
    "last night",
    "on Monday",
    "after lunch",
    "before the storm",
    "at noon",
    "every week",
    "in the summer",
    "two days ago",
    "on the way home",
    "at five o'clock",
    "again",
    "by mistake",
)
_ADJECTIVES = (
    "old",
    "new",
    "small",
    "quiet",
    "heavy",
    "broken",
    "pretty",
    "cold",
    "busy",
    "strange",
    *COLOURS,
)
_WHO = ("I", "we", "they", "my father", "the boy", "our friends", "nobody", "the woman", "Peter", "Anna")
_CHATTER = (
    "The {adj} {noun} is in the {noun}.",
    "{who} {verb} the {noun} {when}.",
    "{who} {verb} the {adj} {noun}.",
    "Please close the {noun} {when}.",
    "Could you bring me the {noun}?",
    "Where is the {noun}?",
    "How much is the {adj} {noun}?",
    "How many {noun}s did you buy {when}?",
    "What colour is your {noun}?",
    "Is there a {noun} in the {noun}?",
    "Do you see my {noun}?",
    "When does the {noun} leave?",
    "Why did {who} sell the {noun}?",
    "The {noun} and the {noun} were {adj}.",
    "It was {adj} {when}.",
    "Tell {who} to call the {noun}.",
    "There are three {noun}s near the {noun}.",
    "There is no {noun} {when}.",
    "{who} drew a {shape} on the {noun}.",
    "The {colour} {shape} is mine.",
    "We walked around the {shape} {when}.",
    "{who} wears a {colour} coat {when}.",
    "Turn left at the {noun}.",
    "That {noun} is {colour}.",
    "One, two, three, four.",
    "I do not like the {adj} {noun}.",
    "Let us meet at the {noun} {when}.",
    "And the {noun}?",
    "No, the {noun} is {adj}.",
    "Yes, {who} {verb} it {when}.",
    "Which {noun} is {adj}?",
    "What is in the {noun}?",
    "Describe the {noun}.",
    "Thank the {noun} for the {noun}.",
    "Good {noun}.",
    "The picture of the {noun} is {adj}.",
    "Count the {noun}s.",
    "Who {verb} the {noun}?",
)


def chatter(rng: random.Random) -> str:
    pools = {
        "noun": _NOUNS,
        "verb": _VERBS,
        "when": _WHEN,
        "adj": _ADJECTIVES,
        "who": _WHO,
        "shape": SHAPES,
        "colour": tuple(COLOURS),
    }
    text = rng.choice(_CHATTER)
    for slot, words in pools.items():
        while f"{{{slot}}}" in text:
            text = text.replace(f"{{{slot}}}", rng.choice(words), 1)
    return text[0].upper() + text[1:]
