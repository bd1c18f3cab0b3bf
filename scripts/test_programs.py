"""Prints the programs that the tests of one suite run, as targets of the build folder.

usage: test_programs.py BUILD_FOLDER SUITE
"""

import json
import os
import subprocess
import sys


def main():
    folder, suite = os.path.abspath(sys.argv[1]), sys.argv[2]
    found = subprocess.run(
        ["meson", "introspect", folder, "--tests"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout
    programs = set()
    for test in json.loads(found):
        if any(name.split(":")[-1] == suite for name in test["suite"]):
            programs.update(os.path.relpath(word, folder) for word in test["cmd"] if word.startswith(folder + os.sep))
    print("\n".join(sorted(programs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
