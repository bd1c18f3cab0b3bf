#!/usr/bin/env python3
"""Counts the instructions of the hot paths under callgrind and compares them with recorded.yaml.

usage: check_counts.py PROGRAM [--record] [PATH...]

Fails when a path takes more than 5 % above what was recorded, or when the node's replay takes more than 5 % above what
PyTorch takes for the same steps by itself (eager). Instructions say little about time, but unlike time they
are the same on a busy machine (0.1 % from run to run), so that a slow-down of a few percent is seen at once. They belong to
one compiler and one libtorch: --record writes the present ones, with the reason in the commit that changes them.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

RECORDED = pathlib.Path(__file__).with_name("recorded.yaml")
ALLOWED = 1.05
STEPS = 8  # that the program counts

# What is collected (a function and all that it calls), and in which mode the steps run.
PATHS = {
    "capture.inference": ("genie::bench::counted_capture*", "inference"),
    "capture.no_grad": ("genie::bench::counted_capture*", "no_grad"),
    "capture.grad": ("genie::bench::counted_capture*", "grad"),
    "flush": ("genie::frontend::SessionCore::flush*", "inference"),
    "invoke": ("genie::executor::*::invoke*", "inference"),
    "eager": ("genie::bench::counted_eager*", "eager"),
}


def count(program, path):
    function, mode = PATHS[path]
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_PERTURB_"}
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--instr-atstart=no",
                "--collect-atstart=no",
                f"--toggle-collect={function}",
                f"--callgrind-out-file={folder}/out",
                program,
                mode,
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode != 0 or found is None or int(found[1]) == 0:
        sys.exit(f"{path}: nothing was counted (exit status {ran.returncode})\n{ran.stderr}")
    return int(found[1]) // STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("paths", nargs="*", metavar="PATH", help=", ".join(PATHS))
    options = parser.parse_args()
    for path in options.paths:
        if path not in PATHS:
            parser.error(f"no path is called {path}; there are {', '.join(PATHS)}")

    recorded = yaml.safe_load(RECORDED.read_text()) if RECORDED.exists() else {}
    counts = {path: count(options.program, path) for path in options.paths or PATHS}
    if options.record:
        recorded.update(counts)
        header = "# Instructions per decode step, by check_counts.py --record: GCC 12, the release build, torch 2.13.0.\n"
        RECORDED.write_text(header + yaml.safe_dump(recorded))
    worse = []
    for path, now in counts.items():
        ratio = now / recorded[path]
        verdict = "ok"
        if ratio > ALLOWED:
            verdict = f"WORSE: at most {ALLOWED} is allowed"
            worse.append(path)
        elif ratio < 1 / ALLOWED:
            verdict = "better: record it"
        print(f"{path:<20}{now:>10} instructions per step, {ratio:.3f} of what was recorded: {verdict}")
    if "invoke" in counts and "eager" in counts:
        share = counts["invoke"] / counts["eager"]
        verdict = "ok" if share <= ALLOWED else f"WORSE: at most {ALLOWED} is allowed"
        print(f"{'invoke':<20}is {share:.3f} of eager: {verdict}")
        if share > ALLOWED:
            worse.append("invoke")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
