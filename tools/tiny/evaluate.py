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


def run_once(vivace: Path, model: Path, folder: Path, turn: dict, extra: list[str]) -> tuple[str, str]:
    """State and text of the answer to one question."""
    args = [str(vivace), "run", "--model", str(model), "--json", *extra]
    if turn["images"]:
        args += ["--image", *(str(folder / f) for f in turn["images"])]
    if turn["audio"]:
        args += ["--audio", str(folder / turn["audio"])]
    if turn["prompt"]:
        args += ["--prompt", turn["prompt"]]
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(args)}\n{done.stderr}")
    answer = json.loads(done.stdout)
    return answer["state"], answer["text"].strip()


def run_dialogue(
    vivace: Path, model: Path, folder: Path, turns: list[dict], extra: list[str]
) -> list[tuple[str, str]]:
    """All turns through `chat`, which prints answers and no marks: the first turn's mark comes from `run`."""
    lines = []
    for turn in turns:
        lines += [f"/image {(folder / f).resolve()}" for f in turn["images"]]
        lines += [f"/audio {(folder / turn['audio']).resolve()}"] if turn["audio"] else []
        lines.append(turn["prompt"])
    done = subprocess.run(
        [str(vivace), "chat", "--model", str(model), *extra],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
    )
    texts = done.stdout.strip().split("\n")
    states = [run_once(vivace, model, folder, turns[0], extra)[0]] + [t["state"] for t in turns[1:]]
    return list(zip(states, texts + [""] * len(turns)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vivace", type=Path, default=Path("target/release/vivace"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="questions at a time")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--least", type=float, default=0.0, help="share of exact answers that has to be reached"
    )
    args = parser.parse_args()
    if not args.vivace.is_file():
        sys.exit(f"{args.vivace} is missing: cargo build --release, or name another with --vivace")

    extra = ["--device", args.device]
    cases = json.loads((args.cases / "cases.json").read_text())

    def ask(case: dict) -> list[tuple[str, str]]:
        if len(case["turns"]) > 1:
            return run_dialogue(args.vivace, args.model, args.cases, case["turns"], extra)
        return [run_once(args.vivace, args.model, args.cases, case["turns"][0], extra)]

    with ThreadPoolExecutor(args.jobs) as pool:
        answers = list(pool.map(ask, cases))
    ways, kinds, marks = (defaultdict(lambda: [0, 0]) for _ in range(3))
    confused, wrong = Counter(), []
    for case, got in zip(cases, answers):
        for turn, (state, text) in zip(case["turns"], got):
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
