"""Unpacks a kernel image, so that it starts without doing so itself: slow in an emulator.

usage: unpack_kernel.py VMLINUZ VMLINUX
"""

import lzma
import sys

XZ_MAGIC = b"\xfd7zXZ\0"


def main():
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        image = file.read()
    at = image.find(XZ_MAGIC)
    kernel = lzma.LZMADecompressor().decompress(image[at:]) if at >= 0 else b""
    if not kernel.startswith(b"\x7fELF"):
        sys.exit(f"{source} holds no kernel that is packed with xz")
    with open(target, "wb") as file:
        file.write(kernel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
