"""The idle guard: a head without a running job for PIXELCNN_IDLE_GUARD_HOURS stops itself, its disk kept."""

import json
import os
import subprocess
import time
import urllib.request

from nodes.places import DASHBOARD, RAY_TOKEN

PAUSE_SECONDS = 60
AT_WORK = {"PENDING", "RUNNING"}


def jobs_at_work() -> int:
    """How many submitted jobs wait or run."""
    ask = urllib.request.Request(
        f"{DASHBOARD}/api/jobs/", headers={"Authorization": f"Bearer {RAY_TOKEN.read_text().strip()}"}
    )
    with urllib.request.urlopen(ask, timeout=30) as answer:
        return sum(job["status"] in AT_WORK for job in json.load(answer))


def idle_seconds(last_work: float, now: float, at_work: int | None) -> float:
    """Seconds since work was last seen; work that can't be asked for counts as work."""
    return 0.0 if at_work is None or at_work else now - last_work


def main() -> None:
    """Ask every minute, and shut down when the hours are over."""
    limit, last_work = 3600 * float(os.environ["PIXELCNN_IDLE_GUARD_HOURS"]), time.monotonic()
    while True:
        try:
            at_work: int | None = jobs_at_work()
        except OSError as error:
            at_work = None
            print(f"idle guard: {DASHBOARD} doesn't tell its jobs ({error})", flush=True)
        now = time.monotonic()
        idle = idle_seconds(last_work, now, at_work)
        if idle == 0:
            last_work = now
        if idle > limit:
            print(f"idle guard: no job for {limit / 3600:g} h; shutting down", flush=True)
            subprocess.run(["shutdown", "-h", "now"], check=True)
            return
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
