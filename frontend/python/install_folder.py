"""Prints where below PREFIX the Python that runs this looks for packages, relative to PREFIX.

usage: install_folder.py PREFIX

From a virtual environment: where the Python that the environment was made from looks. When it looks nowhere below PREFIX, the usual
folder; programs then name it in PYTHONPATH.
"""

import subprocess
import sys

ASK = "import site; print(*site.getsitepackages(), sep='\\n')"


def main():
    prefix = sys.argv[1].rstrip("/") + "/"
    answer = subprocess.run([sys._base_executable, "-I", "-c", ASK], check=True, capture_output=True, text=True)
    below = [path[len(prefix) :] for path in answer.stdout.splitlines() if path.startswith(prefix)]
    # /usr/local lies below /usr, but is not what packages for /usr take.
    below = [path for path in below if not path.startswith("local/")]
    print(below[0] if below else f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")


main()
