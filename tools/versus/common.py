"""What the comparisons share: timing, limits, tables, results."""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Iterator

import torch

ROOT = Path(__file__).resolve().parents[2]
WARMUP, REPEATS = 3, 20
REST_SECONDS = 0.5


def log(*words) -> None:
    print(*words, file=sys.stderr, flush=True)


def reason(e: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text[:300]}" if text else type(e).__name__


def parsed_with_limits(flags: argparse.ArgumentParser, limits: dict[str, float]) -> argparse.Namespace:
    """The flags, and in `limits` the seconds of every section, as `--limit SECTION=SECONDS` changes them."""
    text = ", ".join(f"{k}={v:.0f}" for k, v in limits.items())
    flags.add_argument(
        "--limit", action="append", default=[], metavar="SECTION=SECONDS", help=f"default: {text}"
    )
    found = flags.parse_args()
    found.limits = dict(limits)
    for limit in found.limit:
        name, _, seconds = limit.partition("=")
        if name not in limits:
            sys.exit(f"--limit {limit}: there are {', '.join(limits)}")
        found.limits[name] = float(seconds)
    return found


class OutOfTime(Exception):
    pass


class Clock:
    """Seconds that a section may take. What has begun when they are over is broken off at the next Python
    instruction, and the rest of the section is left out. Compilers turn any exception into one of theirs,
    which would be taken for a failure like others: so the alarm rings again."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.left() <= 0:
            raise OutOfTime("no time left")

        def over(*_):
            raise OutOfTime("the time limit came")

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, self.left(), 5.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def percentile(ordered: list[float], at: float) -> float:
    """Linear between neighbours."""
    place = at * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(times_us: list[float], nodes: int = 1) -> dict:
    """Median, p10 and p90 of several runs, for one of `nodes` equal parts."""
    ordered = sorted(t / nodes for t in times_us)
    return {
        "runs": len(ordered),
        "median_us": statistics.median(ordered),
        "p10_us": percentile(ordered, 0.1),
        "p90_us": percentile(ordered, 0.9),
    }


def rest(device: torch.device) -> None:
    """Before a step, as `vivace bench` rests: one that worked at the chip's power limit leaves a lower clock behind."""
    if device.type != "cpu":
        torch.cuda.synchronize()
        time.sleep(REST_SECONDS)


def timed(
    run: Callable[[], object], device: torch.device, warmup: int = WARMUP, repeats: int = REPEATS
) -> list[float]:
    """Microseconds of each run: device time between events, with no wait for the host in between."""
    if device.type == "cpu":
        times = []
        for _ in range(warmup + repeats):
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e6)
        return times[warmup:]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for _ in range(warmup):
        run()
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e3 for a, b in zip(events, events[1:])]


def captured(run: Callable[[], object], warmup: int = 2) -> tuple[Callable[[], None], object]:
    """`run` as a CUDA graph: what replays it, and what `run` returned, whose memory every replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = run()
    return graph.replay, out


def relative(have: torch.Tensor, want: torch.Tensor) -> float:
    """‖a - b‖ / ‖b‖; anything that is no number makes it infinite."""
    a, b = have.float(), want.float()
    rel = (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()
    return rel if rel == rel else float("inf")


def drop_wrong(ways: dict[str, dict], failed: dict[str, str]) -> None:
    """Moves the ways whose error stands out, or is as large as the result, to what failed: a fast way to a
    wrong result is none."""
    errors = [w["error"] for w in ways.values() if "error" in w]
    least = min(errors, default=0.0)
    allowed = min(4 * least + 1e-6, 1.0)
    for name in [n for n, w in ways.items() if "error" in w and not w["error"] < allowed]:
        failed[name] = f"an error of {ways.pop(name)['error']:.1e}; the least of any way is {least:.1e}"


@contextmanager
def blas(name: str) -> Iterator[None]:
    """The library that matrix products take: cublas or cublaslt; `auto` leaves it to PyTorch."""
    if name == "auto":
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(name)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def table(head: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, numbers to the right."""
    width = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def geometric_mean(xs: list[float]) -> float | None:
    return statistics.geometric_mean(xs) if xs else None


def about(flags) -> dict:
    """When, where and with what."""
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": "cpu",
        "flags": {k: v.name if isinstance(v, Path) else v for k, v in vars(flags).items()},
    }
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
        found["device"] = torch.cuda.get_device_name()
        found["driver"] = output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    # A bundle carries no history and says what it was built from.
    found["commit"] = os.environ.get("VIVACE_COMMIT") or output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    return found


def output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_json(path: Path, value: object) -> None:
    """In one piece, so that a run cut off leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def run_engine(command: list[str], result: Path, limit: float) -> tuple[dict | None, str, str | None]:
    """Runs a binary that writes JSON to `result`. Returns that, what the binary said, and what went wrong."""
    result.unlink(missing_ok=True)
    failure = None
    said = result.with_name(result.name + ".log")
    with said.open("w") as sink:
        try:
            done = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, timeout=limit)
            if done.returncode:
                failure = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"not done within {limit:.0f} s"
        except OSError as e:
            failure = reason(e)
    text = said.read_text(errors="replace")
    if failure:
        failure = f"{command[0]}: {failure}: {' '.join(text[-300:].split())}"
    try:
        return json.loads(result.read_text()), text, failure
    except (OSError, ValueError):
        return None, text, failure or f"{command[0]}: wrote no results"
