"""Prints the folder that holds libtorch's include/ and lib/.

$GENIE_LIBTORCH wins; otherwise the torch wheel in .venv of this checkout. Does not import torch.
"""

import glob
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def candidates():
    wanted = os.environ.get("GENIE_LIBTORCH")
    if wanted:
        yield wanted
        return
    yield from sorted(glob.glob(os.path.join(ROOT, ".venv/lib/python3*/site-packages/torch")))


def main():
    for folder in candidates():
        if os.path.exists(os.path.join(folder, "lib/libtorch_cpu.so")):
            print(folder)
            return 0
    print(
        "libtorch not found: run scripts/setup.sh, or set GENIE_LIBTORCH to a folder that holds include/ and lib/",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
