"""Run a command; print its exit status, seconds and peak memory as JSON.

    python measured.py COMMAND ...

Small on purpose: Linux counts the memory of the process that starts a program as memory of the program.
"""

import json
import os
import subprocess
import sys
import time


def main(command: list[str]) -> None:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.perf_counter() - start,
        "peak": peak,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
