"""Pictures of coloured shapes, and the tiling that makes an encoder's input of them."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from needs import need_modules

need_modules("numpy", "PIL")

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 38, 38),
    "green": (38, 158, 62),
    "blue": (36, 84, 214),
    "yellow": (244, 214, 36),
    "purple": (140, 52, 176),
    "orange": (244, 132, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
# Neutral, so that the colour of a shape is never that of the background.
BACKGROUNDS = ((255, 255, 255), (238, 238, 232), (205, 208, 212), (120, 122, 126), (60, 62, 68), (12, 12, 16))

MAX_TILES = 12
# Rows and columns of a tile as an auxiliary loss names them; every third of a side is a whole number of them.
PLACES = 12
_OVERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """Centre as a share of the picture's sides, radius and turn (degrees) in pixels of the picture."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    turn: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    background: tuple[int, int, int]
    # Added to all pixels, growing from top to bottom.
    shade: int
    noise: float
    noise_seed: int
    # From left to right.
    things: tuple[Thing, ...]


@lru_cache(maxsize=None)
def grids() -> list[tuple[int, int]]:
    """(columns, rows) by rising number of tiles."""
    return [(n // r, r) for n in range(1, MAX_TILES + 1) for r in range(n, 0, -1) if n % r == 0]


def choose_grid(width: int, height: int, size: int) -> tuple[int, int]:
    """The grid nearest in aspect ratio; of equally near ones a larger only if the picture fills half of
    it."""
    best, best_diff = (1, 1), math.inf
    for columns, rows in grids():
        diff = abs(width / height - columns / rows)
        if diff < best_diff or (diff == best_diff and width * height > 0.5 * size * size * columns * rows):
            best, best_diff = (columns, rows), diff
    return best


def count_tiles(width: int, height: int, size: int) -> int:
    columns, rows = choose_grid(width, height, size)
    return columns * rows + (columns * rows > 1)


def resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Horizontally first, which is what the engine does; versions of Pillow differ in the order they choose."""
    wide = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC))


def tile(image: Image.Image, size: int) -> np.ndarray:
    """`[tiles, size, size, 3]`, row by row, and the whole picture as the last when there are several."""
    columns, rows = choose_grid(*image.size, size)
    pixels = resized(image, size * columns, size * rows)
    tiles = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if len(tiles) > 1:
        tiles = np.concatenate([tiles, resized(image, size, size)[None]])
    return tiles


def label_patches(scene: Scene, size: int, patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the centre of each patch shows (0, or 1 + colour · shapes + shape), how many centres of things lie in
    each patch, and in which of PLACES rows and columns of its tile the centre of the shown thing lies (0, or
    1 + row · PLACES + column; 0 also if it lies in another tile): `[tiles, patches]` each. The truth behind
    auxiliary losses."""
    columns, rows = choose_grid(scene.width, scene.height, size)
    boxes = [(c / columns, r / rows, 1 / columns, 1 / rows) for r in range(rows) for c in range(columns)]
    if len(boxes) > 1:
        boxes.append((0, 0, 1, 1))
    grid = size // patch
    middle = (np.arange(grid) + 0.5) / grid
    shown = np.zeros((len(boxes), grid, grid), np.int64)
    centres = np.zeros((len(boxes), grid, grid), np.int64)
    places = np.zeros((len(boxes), grid, grid), np.int64)
    names = list(COLOURS)
    for thing in scene.things:
        what = 1 + names.index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape)
        rx, ry = thing.radius / scene.width, thing.radius / scene.height
        for i, (left, top, w, h) in enumerate(boxes):
            dx, dy = (left + middle * w - thing.x) / rx, (top + middle * h - thing.y) / ry
            covered = dx[None] ** 2 + dy[:, None] ** 2 < 0.8
            shown[i][covered] = what
            u, v = (thing.x - left) / w, (thing.y - top) / h
            if 0 <= u < 1 and 0 <= v < 1:
                centres[i, int(v * grid), int(u * grid)] += 1
                places[i][covered] = 1 + int(v * PLACES) * PLACES + int(u * PLACES)
    return tuple(x.reshape(len(boxes), -1) for x in (shown, centres, places))


def _size(rng: random.Random, size: int, tiles: range) -> tuple[int, int]:
    """Any aspect ratio from 1:4 to 4:1 and any area, so long as it makes a number of tiles in the range.
    Squares, the only single tiles, would be rare by chance."""
    while True:
        aspect = rng.uniform(0.88, 1.16) if rng.random() < 0.4 else math.exp(rng.uniform(-1.42, 1.42))
        side = math.exp(rng.uniform(math.log(0.85), math.log(3))) * size
        width, height = round(side * aspect**0.5), round(side / aspect**0.5)
        if min(width, height) >= 80 and count_tiles(width, height, size) in tiles:
            return width, height


def _arrange(rng: random.Random, n: int, width: int, height: int) -> list[tuple[float, float, float]]:
    """Centres and radii, apart from each other; smaller when they find no room. Columns differ visibly, so
    that "from left to right" is an order."""
    short, largest = min(width, height), 0.24
    while True:
        for _ in range(20):
            placed: list[tuple[float, float, float]] = []
            for _ in range(n):
                r = rng.uniform(0.105, max(largest, 0.11)) * short
                x, y = rng.uniform(r, width - r), rng.uniform(r, height - r)
                if all(
                    math.hypot(x - px, y - py) > 1.08 * (r + pr) and abs(x - px) > 0.07 * width
                    for px, py, pr in placed
                ):
                    placed.append((x, y, r))
            if len(placed) == n:
                return sorted(placed)
        largest *= 0.93


def make_scene(rng: random.Random, size: int, tiles: range = range(1, 14), count: int | None = None) -> Scene:
    """A random picture for tiles of `size` pixels. Some show few colours or few shapes: else nothing would
    ever be there three times."""
    width, height = _size(rng, size, tiles)
    colours, shapes = list(COLOURS), list(SHAPES)
    if rng.random() < 0.3:
        colours = rng.sample(colours, rng.choice((1, 2, 2)))
    if rng.random() < 0.3:
        shapes = rng.sample(shapes, rng.choice((1, 2, 2)))
    background = rng.choice(BACKGROUNDS)
    things = []
    for x, y, r in _arrange(rng, count or rng.randint(1, 5), width, height):
        colour = rng.choice(colours)
        rgb = tuple(min(255, max(0, v + rng.randint(-14, 14))) for v in COLOURS[colour])
        things.append(Thing(colour, rng.choice(shapes), x / width, y / height, r, rng.uniform(-15, 15), rgb))
    return Scene(
        width,
        height,
        background,
        rng.choice((0, 0, -24, 24)),
        rng.choice((0, 0, 3, 6, 10)),
        rng.getrandbits(32),
        tuple(things),
    )


def _corners(shape: str) -> list[tuple[float, float]]:
    """The outline of a shape in the unit circle, y downwards."""
    if shape == "square":
        return [(0.85 * x, 0.85 * y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    if shape == "triangle":
        return [(math.sin(t), -math.cos(t)) for t in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    if shape == "star":
        return [
            (
                (0.42 if i % 2 else 1) * math.sin(i * math.pi / 5),
                -(0.42 if i % 2 else 1) * math.cos(i * math.pi / 5),
            )
            for i in range(10)
        ]
    b = 0.32
    return [
        (-b, -1),
        (b, -1),
        (b, -b),
        (1, -b),
        (1, b),
        (b, b),
        (b, 1),
        (-b, 1),
        (-b, b),
        (-1, b),
        (-1, -b),
        (-b, -b),
    ]


@lru_cache(maxsize=None)
def _grain() -> np.ndarray:
    """Unit noise for all pictures, each from another corner: drawing it anew would cost most of a picture's
    time."""
    return np.random.default_rng(0).standard_normal((1024, 1024, 3), np.float32)


def render(scene: Scene) -> Image.Image:
    w, h, k = scene.width, scene.height, _OVERSAMPLING
    canvas = Image.new("RGB", (w * k, h * k), scene.background)
    draw = ImageDraw.Draw(canvas)
    for t in scene.things:
        x, y, r = t.x * w * k, t.y * h * k, t.radius * k
        if t.shape == "circle":
            draw.ellipse((x - 0.92 * r, y - 0.92 * r, x + 0.92 * r, y + 0.92 * r), t.rgb)
        else:
            c, s = math.cos(math.radians(t.turn)), math.sin(math.radians(t.turn))
            draw.polygon(
                [(x + r * (c * u - s * v), y + r * (s * u + c * v)) for u, v in _corners(t.shape)], t.rgb
            )
    canvas = canvas.reduce(k)
    if not scene.shade and not scene.noise:
        return canvas
    pixels = np.asarray(canvas, np.float32) + np.linspace(0, scene.shade, h, dtype=np.float32)[:, None, None]
    if scene.noise:
        top, left = scene.noise_seed % (1024 - h), scene.noise_seed // 1024 % (1024 - w)
        pixels += scene.noise * _grain()[top : top + h, left : left + w]
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
