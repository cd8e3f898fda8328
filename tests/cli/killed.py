"""`inc-mp`, killed by SIGKILL where it has come so far: at a file that it writes, or some time afterwards.

    killed.py MOMENT ARGUMENT...

MOMENT is JSON: {"file": name of the file, "samples": those that it holds at least, or "times": how often it
is written, "delay": seconds after it is in place, or null: before that, when it is written beside}.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np

from inc_mp_plugin.cli.main import main


def samples_in(path):
    """Samples that an unfinished measurement holds: calibrated, measured, and run with all rounded."""
    with np.load(path, allow_pickle=False) as arrays:
        return int(arrays["samples"].sum()) + len(arrays["rounded"])


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(moment):
    written = Counter()

    def see(event, arguments):
        if event != "os.rename":
            return
        name, samples = Path(arguments[1]).name, 0
        if name.startswith("sensitivity.partial"):
            samples = samples_in(arguments[0])
            sys.stderr.write(f"[samples: {samples}]\n")  # at once: two processes share it
        written.update([name])
        due = samples >= moment.get("samples", 0) and written[name] >= moment.get("times", 1)
        if name != moment["file"] or not due:
            return
        if moment["delay"] is None:
            kill()
        timer = threading.Timer(moment["delay"], kill)
        timer.daemon = True
        timer.start()

    sys.addaudithook(see)


if __name__ == "__main__":
    given = json.loads(sys.argv.pop(1))
    if int(os.environ.get("RANK", "0")) == given.get("rank", 0):
        watch(given)
    main()
