#!/usr/bin/env python3
"""Records what `genie doctor` reads of a host, for its tests: one JSON object from path to content, on stdout.

    tests/unit/doctor/record_tree.py > tests/unit/doctor/trees/NAME.json

Libraries and device nodes are recorded as empty files: only their names are looked at.
"""
import glob
import json
import os
import sys

FILES = """
/proc/meminfo /proc/mounts /proc/cmdline /proc/self/limits /proc/self/status /proc/net/tcp /proc/net/tcp6 /proc/net/unix
/proc/driver/nvidia/version
/proc/sys/kernel/osrelease /proc/sys/kernel/numa_balancing
/proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/ipv4/ip_local_reserved_ports
/proc/sys/net/ipv4/ip_unprivileged_port_start
/sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max
/sys/kernel/mm/hugepages/*/nr_hugepages /sys/kernel/mm/hugepages/*/free_hugepages
/sys/kernel/mm/transparent_hugepage/enabled
/sys/kernel/iommu_groups/*/type
/sys/devices/system/node/node*/cpulist
/sys/class/net/*/mtu
/sys/class/infiniband/*/device/numa_node /sys/class/infiniband/*/device/iommu_group/type
/sys/class/infiniband/*/ports/*/state /sys/class/infiniband/*/ports/*/phys_state /sys/class/infiniband/*/ports/*/rate
/sys/class/infiniband/*/ports/*/link_layer /sys/class/infiniband/*/ports/*/lid
/sys/class/infiniband/*/ports/*/gids/* /sys/class/infiniband/*/ports/*/gid_attrs/types/*
/sys/class/infiniband/*/ports/*/gid_attrs/ndevs/*
/sys/class/infiniband/*/node_type
/sys/class/infiniband_verbs/uverbs*/ibdev
/sys/bus/pci/devices/*/vendor /sys/bus/pci/devices/*/class /sys/bus/pci/devices/*/iommu_group/type
/sys/module/nvidia_peermem/refcnt
/usr/lib/*/pkgconfig/ucx.pc /usr/lib*/pkgconfig/ucx.pc
""".split()
NAMES = """
/dev/infiniband/*
/usr/lib*/libibverbs.so* /usr/lib*/libmlx*.so* /usr/lib*/librdmacm.so* /usr/lib*/libucp.so* /usr/lib*/ucx/libuct_ib.so*
/usr/lib/*/libibverbs.so* /usr/lib/*/libmlx*.so* /usr/lib/*/librdmacm.so* /usr/lib/*/libucp.so* /usr/lib/*/ucx/libuct_ib.so*
/usr/local/lib/libibverbs.so* /usr/local/lib/libucp.so*
""".split()

# Of the longer files what is looked at.
KEEP = {
    "/proc/meminfo": ("Mem", "Huge"),
    "/proc/self/status": ("Name", "CapEff", "Cpus_allowed"),
}

tree = {}
for pattern in FILES:
    for path in glob.glob(pattern):
        try:
            with open(path, errors="replace") as file:
                text = file.read()
        except OSError:  # an empty entry of a GID table
            continue
        if "/gids/" in path and not text.strip("0:\n"):
            continue
        if path in KEEP:
            text = "".join(line for line in text.splitlines(True) if line.startswith(KEEP[path]))
        tree[path] = text
for pattern in NAMES:
    tree.update((path, "") for path in glob.glob(pattern) if not os.path.isdir(path))
json.dump(dict(sorted(tree.items())), sys.stdout, indent=0)
print()
