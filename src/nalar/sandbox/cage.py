"""What a process gives up before it runs code that nobody trusts: Linux calls by ctypes, stdlib alone.

Every function changes the process that calls it, for good.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Mapping
from pathlib import Path

NOBODY = 65_534
_CLONE_NEW = {
    "ns": 0x0002_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_CAPABILITY_VERSION_3 = 0x2008_0522
_MAX_OPEN_FILES = 32
_PR_SET_SECCOMP, _SECCOMP_FILTER, _X32_CALLS = 22, 2, 0x4000_0000
_DENIED: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000_003E,
        # shmget shmat shmctl socket socketpair semget msgget ptrace pivot_root mount umount2
        (29, 30, 31, 41, 53, 64, 68, 101, 155, 165, 166)
        # init_module delete_module kexec_load add_key request_key keyctl unshare perf_event_open
        + (175, 176, 246, 248, 249, 250, 272, 298)
        # name_to_handle_at open_by_handle_at setns process_vm_readv process_vm_writev kcmp finit_module
        + (303, 304, 308, 310, 311, 312, 313)
        # memfd_create kexec_file_load bpf userfaultfd io_uring_setup io_uring_enter io_uring_register
        + (319, 320, 321, 323, 425, 426, 427)
        # open_tree move_mount fsopen fsconfig fsmount fspick pidfd_getfd mount_setattr memfd_secret
        + (428, 429, 430, 431, 432, 433, 438, 442, 447),
    ),
    "aarch64": (
        0xC000_00B7,
        # umount2 mount pivot_root unshare kexec_load init_module delete_module ptrace msgget semget
        (39, 40, 41, 97, 104, 105, 106, 117, 186, 190)
        # shmget shmctl shmat socket socketpair add_key request_key keyctl perf_event_open
        + (194, 195, 196, 198, 199, 217, 218, 219, 241)
        # name_to_handle_at open_by_handle_at setns process_vm_readv process_vm_writev kcmp finit_module
        + (264, 265, 268, 270, 271, 272, 273)
        # memfd_create bpf userfaultfd kexec_file_load io_uring_setup io_uring_enter io_uring_register
        + (279, 280, 282, 294, 425, 426, 427)
        # open_tree move_mount fsopen fsconfig fsmount fspick pidfd_getfd mount_setattr memfd_secret
        + (428, 429, 430, 431, 432, 433, 438, 442, 447),
    ),
}
"""By machine: its number among the kernel's architectures, and the numbers of calls that computing never needs."""


def _checked(result: int, what: str) -> int:
    """OSError that names the call, where it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def drop_root() -> None:
    """Become nobody, where this is root: root is exempt from limits of processes, and owns files."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _checked(_libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # or /proc/self is root's


def unshare_all() -> None:
    """New namespaces of users, files, network, names and, for the children to come, processes."""
    uid, gid = os.getuid(), os.getgid()
    flags = 0
    for bit in _CLONE_NEW.values():
        flags |= bit
    _checked(_libc().unshare(flags), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")


def empty_root() -> None:
    """Leave the machine's files behind: the root becomes an empty folder that nothing can be written to."""
    libc, number = _libc(), _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root: its number on {platform.machine()} is not known here")
    _checked(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    shut = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _checked(
        libc.mount(b"none", b"/tmp", b"tmpfs", shut, b"size=4k,nr_inodes=2,mode=0555"),
        "mount tmpfs",
    )
    os.chdir("/tmp")
    _checked(libc.syscall(number, b".", b"."), "pivot_root")
    _checked(libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    _checked(libc.mount(None, b"/", None, _MS_REMOUNT | _MS_RDONLY | shut, None), "remount")


def landlock_abi() -> int:
    """Version of Landlock in this kernel; 0 without it."""
    return max(0, int(_libc().syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)))


def landlock() -> None:
    """From here on no file is opened, made or removed, no TCP port bound or connected to (kernel 6.7), and no
    process outside signalled (6.12). What is open stays open."""
    abi, libc = landlock_abi(), _libc()
    if abi < 1:
        raise OSError("landlock: this kernel has none")
    files = (1 << 13) - 1
    files |= (
        (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    )
    words = [files, 3, 3][: 1 if abi < 4 else 2 if abi < 6 else 3]
    attributes = (ctypes.c_uint64 * len(words))(*words)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.sizeof(attributes), 0)
    _checked(ruleset, "landlock_create_ruleset")
    no_new_privileges()
    _checked(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def no_new_privileges() -> None:
    _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def drop_capabilities() -> None:
    """All of them, for this process and whatever it executes."""
    no_new_privileges()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc().capset(header, (ctypes.c_uint32 * 6)()), "capset")


def filter_calls() -> None:
    """From here on calls that computing never needs fail: shared memory beyond the limits, sockets, tracing, mounts,
    namespaces, keys, modules, io_uring, user faults. Calls of another architecture end the process."""
    machine = platform.machine()
    if machine not in _DENIED:
        raise OSError(f"seccomp: the numbers of calls on {machine} are not known here")
    architecture, denied = _DENIED[machine]
    allow, errno, kill = 0x7FFF_0000, 0x0005_0000 | 1, 0x8000_0000
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, len(denied) + 1, 0, _X32_CALLS)]
    program += [(equal, len(denied) - i, 0, number) for i, number in enumerate(denied)]
    program += [(give, 0, 0, allow), (give, 0, 0, errno)]
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    code = ctypes.create_string_buffer(packed, len(packed))
    filters = struct.pack("@HP", len(program), ctypes.addressof(code))
    no_new_privileges()
    _checked(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, filters, 0, 0), "seccomp")


def die_with_parent() -> None:
    _checked(_libc().prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def limit(limits: Mapping[str, int]) -> None:
    """`cpu_s`, `memory_bytes`, `processes` and `output_bytes`; none of them can be raised again."""
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["output_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def close_all_but(*kept: int) -> None:
    """Of all open files only `kept` stay; standard input, output and errors lead nowhere if they are not among them."""
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in {0, 1, 2} - set(kept):
        os.dup2(nowhere, standard)
    low = 3
    for file in sorted(set(kept) - {0, 1, 2}):
        os.closerange(low, file)
        low = file + 1
    os.closerange(low, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536))
