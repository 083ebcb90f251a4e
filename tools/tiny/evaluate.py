"""Asks the engine held-out cases and compares its answers word by word.

    evaluate.py CASES MODEL [--vivace target/release/vivace]

CASES is a folder that cases.py wrote. Prints exact answers and marks by way of asking and by kind, and what
was answered instead; `--out` writes all of it as JSON. Ends with 1 if a share is below `--least`."""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from needs import need_file

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


def tally(cases: list[dict], answers: dict[str, list[tuple[str, str]]]) -> dict:
    """[right, of] by way of asking and by kind; for each mark that was due, how often which came; what was wrong."""
    ways: dict = defaultdict(lambda: [0, 0])
    kinds: dict = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    came: dict = {way: dict.fromkeys([*WAYS.values(), "none"], 0) for way in WAYS.values()}
    wrong = []
    for case in cases:
        for turn, (state, text) in zip(case["turns"], answers[case["name"]]):
            right = (state, text) == (turn["state"], turn["answer"])
            way = WAYS[turn["state"]]
            for count in (ways[way], kinds[turn["kind"]][way]):
                count[0] += right
                count[1] += 1
            came[way][WAYS.get(state, "none")] += 1
            if not right:
                wrong.append(
                    {
                        "case": case["name"],
                        "kind": turn["kind"],
                        "wanted": [turn["state"], turn["answer"]],
                        "got": [state, text],
                    }
                )
    marks = {way: [n[way], sum(n.values())] for way, n in came.items() if sum(n.values())}
    kinds = {kind: dict(sorted(kinds[kind].items())) for kind in sorted(kinds)}
    return {"ways": dict(sorted(ways.items())), "marks": marks, "came": came, "kinds": kinds, "wrong": wrong}


def by_kind(scores: dict) -> dict[str, list[int]]:
    return {f"{kind}, {way}": n for kind, of in scores["kinds"].items() for way, n in of.items()}


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
    need_file(args.vivace, "cargo build --release, or name another with --vivace")
    cases = json.loads(need_file(args.cases / "cases.json", f"python cases.py {args.cases}").read_text())
    parts = [cases[i :: args.jobs] for i in range(args.jobs)]
    with ThreadPoolExecutor(args.jobs) as pool:
        asked = pool.map(lambda part: ask(args.vivace, args.model, args.device, args.cases, part), parts)
        answers = {case["name"]: got for part, gots in zip(parts, asked) for case, got in zip(part, gots)}
    scores = tally(cases, answers)
    for title, table in (("exact answers", scores["ways"]), ("marks", scores["marks"]), ("by kind", by_kind(scores))):
        print(title)
        for key, (right, of) in table.items():
            print(f"  {key:24} {right:5} of {of:5}  {right / of:.1%}")
    for w in scores["wrong"]:
        print(f"{w['case']}: wanted {w['wanted']}, got {w['got']}")
    if args.out:
        args.out.write_text(json.dumps(scores, indent=1) + "\n")
    sys.exit(min(right / of for right, of in scores["ways"].values()) < args.least)


if __name__ == "__main__":
    main()
