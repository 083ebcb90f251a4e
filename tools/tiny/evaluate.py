"""Asks the engine held-out cases and compares its answers word by word.

    evaluate.py CASES MODEL [--vivace target/release/vivace]

CASES is a folder that cases.py wrote. Prints exact answers and marks by way of asking and by kind, and what
was answered instead; `--out` writes all of it as JSON. Ends with 1 if a share is below `--least`."""

import argparse
import json
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WAYS = {"text": "written", "audio": "spoken", "noise": "noise"}


def ask(vivace: Path, model: Path, device: str, folder: Path, cases: list[dict]) -> list[list[tuple[str, str]]]:
    """State and text of every turn of every case, by one process."""
    lines = []
    for turn in (turn for case in cases for turn in [*case["turns"], None]):
        if turn is None:
            lines.append("/reset")
            continue
        lines += [f"/image {(folder / f).resolve()}" for f in turn["images"]]
        lines += [f"/audio {(folder / turn['audio']).resolve()}"] if turn["audio"] else []
        lines.append(turn["prompt"])
    done = subprocess.run(
        [str(vivace), "chat", "--json", "--model", str(model), "--device", device],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    failed = next((a["error"] for a in answers if "error" in a), done.stderr if done.returncode else None)
    if failed:
        sys.exit(f"{vivace}: {failed}")
    said = iter((a["state"], a["text"].strip()) for a in answers)
    return [[next(said) for _ in case["turns"]] for case in cases]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vivace", type=Path, default=Path("target/release/vivace"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--least", type=float, default=0.0, help="share of exact answers that has to be reached"
    )
    args = parser.parse_args()
    if not args.vivace.is_file():
        sys.exit(f"{args.vivace} is missing: cargo build --release, or name another with --vivace")

    cases = json.loads((args.cases / "cases.json").read_text())
    parts = [cases[i :: args.jobs] for i in range(args.jobs)]
    with ThreadPoolExecutor(args.jobs) as pool:
        asked = pool.map(lambda part: ask(args.vivace, args.model, args.device, args.cases, part), parts)
        answers = {case["name"]: got for part, gots in zip(parts, asked) for case, got in zip(part, gots)}
    ways, kinds, marks = (defaultdict(lambda: [0, 0]) for _ in range(3))
    confused, wrong = Counter(), []
    for case in cases:
        for turn, (state, text) in zip(case["turns"], answers[case["name"]]):
            right = (state, text) == (turn["state"], turn["answer"])
            for table, key, hit in (
                (ways, WAYS[turn["state"]], right),
                (marks, WAYS[turn["state"]], state == turn["state"]),
                (kinds, turn["kind"], right),
            ):
                table[key][0] += hit
                table[key][1] += 1
            confused[f"{turn['state']} -> {state}"] += state != turn["state"]
            if not right:
                wrong.append(
                    {"case": case["name"], "wanted": [turn["state"], turn["answer"]], "got": [state, text]}
                )
    for title, table in (("exact answers", ways), ("marks", marks), ("by kind", kinds)):
        print(title)
        for key, (right, of) in sorted(table.items()):
            print(f"  {key:16} {right:5} of {of:5}  {right / of:.1%}")
    for w in wrong:
        print(f"{w['case']}: wanted {w['wanted']}, got {w['got']}")
    if args.out:
        args.out.write_text(
            json.dumps(
                {"ways": ways, "marks": marks, "kinds": kinds, "marks confused": +confused, "wrong": wrong},
                indent=1,
            )
            + "\n"
        )
    sys.exit(min(right / of for right, of in ways.values()) < args.least)


if __name__ == "__main__":
    main()
