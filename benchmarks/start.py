"""What a run costs before its first step, or a search but for training: seconds, and the processors' by process.

`python -m benchmarks.start --beside FOLDER --repeats 3` starts a tiny run of two workers on a cluster of its own, in
this checkout and in another one, in turn; each is ended after its first step. With `--job jobs.search` it is a search
of two trials of four steps, one after the other, to its end.
"""

import argparse
import collections
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.words import count, run_script
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]
SIZE = ["--model.num-layers", "2", "--model.num-filters", "8", "--train.batch-size", "32", "--run.log-interval", "1"]
JOBS = {
    "jobs.train": ([], r"^step 1/", "its first step"),
    "jobs.search": (
        ["--train.steps", "4", "--cluster.num-workers", "1", "--search.max-concurrent-trials", "1",
         "--search.scheduler", "none", "--search.space", "train.learning_rate=choice(0.001,0.002)"],
        r"^best: ", "it told the best trial",
    ),
}  # fmt: skip
"""More words of each job, the line at which it is ended, and what that line is."""
SECONDS_BETWEEN_LOOKS = 0.25


def look(job: psutil.Process, seen: dict[int, tuple[str, float]]) -> None:
    """Note name and processors' seconds of a process and of all below it, by number; those that have ended stay.

    Call it often: what a process used after the last look before its end is not seen.
    """
    for each in [job, *job.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times, words = each.cpu_times(), each.cmdline()
            name = _name(words) or seen.get(each.pid, ("", 0.0))[0]  # one that is ending has none
            seen[each.pid] = (name, times.user + times.system)


def _name(words: list[str]) -> str:
    """A worker of Ray's by its actor's name, a program by its file or module."""
    if words and words[0].startswith("ray::"):
        return words[0].split(".")[0].strip()
    if "-m" in words:
        return words[words.index("-m") + 1]
    return next((Path(word).name for word in words if not word.startswith("-") and "python" not in Path(word).name), "")


def started(checkout: Path, folder: Path, job_name: str) -> tuple[float, collections.Counter[str]]:
    """Seconds from the command to the job's line in JOBS, and those of the processors by process.

    Raises:
        UserError: it ended before, or its data could not be prepared.
    """
    more, last_line, event = JOBS[job_name]
    words = ["digits", *SIZE, *more, "--data.url", f"{folder}/data", "--run.url", f"{folder}/runs"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    log = folder / "log"
    with log.open("w") as output:
        prepare = [sys.executable, "-m", "jobs.prepare", *words]
        status = subprocess.call(prepare, cwd=checkout, env=environment, stdout=output, stderr=output)
    if status:
        raise UserError(f"{checkout}: jobs.prepare ended with status {status}:\n{log.read_text()}")
    began = time.monotonic()
    with log.open("w") as output:
        job = subprocess.Popen(
            [sys.executable, "-m", job_name, *words], cwd=checkout, env=environment, stdout=output, stderr=output
        )
    seen: dict[int, tuple[str, float]] = {}
    try:
        while not re.search(last_line, log.read_text(), re.MULTILINE):
            if job.poll() is not None:
                raise UserError(f"{checkout}: {job_name} ended before {event}:\n{log.read_text()}")
            time.sleep(SECONDS_BETWEEN_LOOKS)
            look(psutil.Process(job.pid), seen)
        used = collections.Counter[str]()
        for name, seconds in seen.values():
            used[name] += seconds
        return time.monotonic() - began, used
    finally:
        job.terminate()
        job.wait()


def main() -> None:
    """Print a line for each start, then the means by process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="another checkout, run in turn with this one by the same Python")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--job", choices=JOBS, default="jobs.train")
    arguments = parser.parse_args()
    if arguments.beside and not (arguments.beside / "jobs" / "train.py").is_file():
        raise UserError(
            f"--beside {arguments.beside}: no checkout of this project, it has no jobs/train.py; make one by "
            f"`git worktree add --detach {arguments.beside} COMMIT`"
        )
    checkouts = [ROOT, *([arguments.beside.resolve()] if arguments.beside else [])]
    sums = {checkout: collections.Counter[str]() for checkout in checkouts}
    for _ in range(arguments.repeats):
        for checkout in checkouts:
            with tempfile.TemporaryDirectory() as folder:
                seconds, used = started(checkout, Path(folder), arguments.job)
            print(f"{checkout.name}: {seconds:.1f} s, processors {used.total():.1f} s", flush=True)
            sums[checkout].update(used)
    print("| process |", *(f"{checkout.name} |" for checkout in checkouts))
    for name, _ in (sum(sums.values(), collections.Counter[str]())).most_common():
        print(f"| {name} |", *(f"{sums[checkout][name] / arguments.repeats:.1f} |" for checkout in checkouts))


if __name__ == "__main__":
    run_script(main)
