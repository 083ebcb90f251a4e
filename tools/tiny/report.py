"""Draws results/curve.svg from results/curve.json, and writes the tables of README.md, between its comments, from
results/evaluation.json (of evaluate.py, the engine) and results/scores.json (of train.py, PyTorch). Standard library
only."""

import argparse
import json
import math
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results", HERE / "README.md"
BEGIN, END = "<!-- report.py -->", "<!-- end -->"

WIDTH, LEFT, RIGHT = 720, 56, 700
LOSSES, SHARES = (44, 214), (250, 350)
CURVES = {
    "answer": ("#1f6f5c", "answers"),
    "patch": ("#b7791f", "what a picture shows, and where"),
    "speech": ("#5b5fc7", "letters and words of speech"),
}
DECADES = range(-4, 2)


def chart(curve: list[dict]) -> str:
    last = curve[-1]["seconds"]
    parts = []

    def x(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * seconds / last

    def y(loss: float) -> float:
        low, high = DECADES[0], DECADES[-1]
        return LOSSES[1] - (LOSSES[1] - LOSSES[0]) * (math.log10(loss) - low) / (high - low)

    def share(value: float) -> float:
        return SHARES[1] - (SHARES[1] - SHARES[0]) * value

    def grid(at: float, label: str):
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" class="n">{label}</text>')

    def line(points: list[tuple[float, float]], colour: str):
        at = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"/>')

    for decade in DECADES:
        grid(y(10.0**decade), f"{10.0**decade:g}")
    for percent in (0, 50, 100):
        grid(share(percent / 100), f"{percent} %")
    for seconds in range(0, int(last) + 1, 60):
        parts.append(f'<text x="{x(seconds):.1f}" y="368" text-anchor="middle" class="n">{seconds} s</text>')
    at = LEFT
    for name, (colour, label) in CURVES.items():
        line([(x(p["seconds"]), y(p[name])) for p in curve if p[name] > 0], colour)
        parts.append(f'<rect x="{at}" y="25" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 15}" y="34">{label}</text>')
        at += 45 + 6.5 * len(label)
    line([(x(p["seconds"]), share(p["exact"])) for p in curve], "#1f6f5c")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="380" viewBox="0 0 {WIDTH} 380">'
        "<style>text{font:12px system-ui,sans-serif;fill:#1b1f24}.n{font-size:10px}"
        ".grid{stroke:#e3e6ea}</style>"
        f'<rect width="{WIDTH}" height="380" fill="#fff"/>'
        f'<text x="{LEFT}" y="16" font-weight="600">Losses in training, {curve[-1]["step"]} steps on one H200</text>'
        f'<text x="{LEFT}" y="240" font-weight="600">Answers of a training batch that are right to the last token</text>'
        f"{''.join(parts)}</svg>\n"
    )


def percent(right: int, of: int) -> str:
    """Rounded down: 100 % is all."""
    return f"{math.floor(1000 * right / of) / 10:g} %"


def cell(n: list[int] | None) -> str:
    return f"{n[0]} of {n[1]}" if n else ""


def tables(engine: dict, torch: dict) -> str:
    lines = [
        "| | the engine: exact answers | | the engine: right marks | PyTorch: exact answers | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way in ("written", "spoken", "noise"):
        of_torch = torch["way"][way]["right"], torch["way"][way]["of"]
        if way == "written":
            # A picture alone counts as written.
            alone = torch["way"]["no question"]
            of_torch = of_torch[0] + alone["right"], of_torch[1] + alone["of"]
        n, mark = engine["ways"][way], engine["marks"][way]
        cells = [way, cell(n), percent(*n), percent(*mark), cell(of_torch), percent(*of_torch)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Marks, by the engine:", "", "| should be | taken for written | for spoken | for noise |", "| --- | --- | --- | --- |"]
    for way, came in engine["came"].items():
        lines.append(f"| {way} | {came['written']} | {came['spoken']} | {came['noise']} |")
    lines += ["", "By kind of question, by the engine:", ""]
    lines += ["| kind | written | spoken | noise | instead of the right answer |", "| --- | --- | --- | --- | --- |"]
    for kind, ways in engine["kinds"].items():
        cells = [kind, *(cell(ways.get(way)) for way in ("written", "spoken", "noise")), instead(engine, kind)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def instead(engine: dict, kind: str) -> str:
    wrong = [w for w in engine["wrong"] if w["kind"] == kind]
    noise = sum(w["got"][0] == "noise" for w in wrong)
    texts = [f"“{w['got'][1]}” for “{w['wanted'][1]}”" for w in wrong if w["got"][0] != "noise"]
    return "; ".join([f"{noise} taken for noise"] * (noise > 0) + texts)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()

    def read(name: str):
        return json.loads((RESULTS / name).read_text())

    (RESULTS / "curve.svg").write_text(chart(read("curve.json")))
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    report = tables(read("evaluation.json"), read("scores.json"))
    README.write_text(f"{before}{BEGIN}\n{report}\n{END}{after}")


if __name__ == "__main__":
    main()
