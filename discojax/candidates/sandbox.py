"""Limits that the checking process puts on itself before it reads a candidate.

Three layers, each by what the system has: resource limits (any POSIX system), Landlock (Linux
5.13: no file but Python's own can be opened, none written, no TCP), seccomp (Linux on x86-64 and
arm64: no socket, no new process, no change to the file system). None is required: the language
cannot express any of this, and a hole in it meets these walls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable

__all__ = ["confine", "limit_resources", "restrict_files", "restrict_system_calls"]

_GIB = 2**30
_ADDRESS_SPACE = 16 * _GIB  # XLA reserves addresses it never uses; resident memory is watched from outside
_OPEN_FILES = 64
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2


def confine(readable: Iterable[str]) -> list[str]:
    """Applies every layer the system has and returns their names. To be called before any thread starts.

    Args:
      readable: files, and folders whose files, may still be read.
    """
    layers = []
    for name, layer in (
        ("rlimits", limit_resources),
        ("landlock", lambda: restrict_files(readable)),
        ("seccomp", restrict_system_calls),
    ):
        try:
            applied = layer()
        except (OSError, ValueError, AttributeError, ImportError):
            applied = False  # absent or refused here, as in some containers
        if applied:
            layers.append(name)
    return layers


def limit_resources() -> bool:
    """No core dumps, no file growth, few open files, bounded addresses."""
    import resource  # absent on Windows

    limits = {"CORE": 0, "FSIZE": 0, "NOFILE": _OPEN_FILES}
    if sys.platform == "linux":
        limits["AS"] = _ADDRESS_SPACE
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    return True


# --- Landlock ------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # bits known to each version of the interface


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments) -> int:
    result = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "the system call is not available")
    return result


def restrict_files(readable: Iterable[str]) -> bool:
    """Landlock: files under `readable` can be read; nothing else can be opened, and nothing written."""
    if sys.platform != "linux":
        return False
    version = _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    files = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    network = 0b11 if version >= 4 else 0  # bind and connect
    scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals to other processes
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = ctypes.create_string_buffer(struct.pack("QQQ", files, network, scopes)[:size], size)
    rules = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    for path in readable:
        if not os.path.exists(path):
            continue
        rights = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
        _call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), beneath, ctypes.c_uint(0))
        os.close(descriptor)
    _no_new_privileges()
    _call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)
    return True


def _no_new_privileges() -> None:
    if _libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs is not available")


# --- seccomp -------------------------------------------------------------------------------------

# Refused system calls by name, with their numbers on x86-64 and arm64 (None: absent there).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50,
    201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "creat": (85, None), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "truncate": (76, 45),
    "chmod": (90, None), "fchmodat": (268, 53), "chown": (92, None), "fchownat": (260, 54), "mknod": (133,
    None),
    "mknodat": (259, 33), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51),
    "pivot_root": (155, 41),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "memfd_create": (319, 279), "keyctl": (250, 219),
    "add_key": (248, 217), "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "open_by_handle_at": (304, 265), "personality": (135, 92),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _OPENAT, _OPEN = (56, 220), (435, 435), (257, 56), (2, None)
_CLONE_THREAD = 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


def _filter(column: int, architecture: int) -> bytes:
    """The Berkeley packet filter: each rule loads a field, jumps over its verdict or returns it."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    def when(code: int, value: int, verdict: int) -> list[bytes]:
        return [step(code, value, 0, 1), step(_RETURN, verdict)]

    def when_argument(number: int, argument: int, bits: int, refuse_if_set: bool) -> list[bytes]:
        test = (1, 0) if refuse_if_set else (0, 1)
        return [
            step(_EQUAL, number, 0, 4),
            step(_LOAD, _ARGUMENTS_AT + 8 * argument),
            step(_ANY_BIT, bits, 0 if test == (1, 0) else 1, 1 if test == (1, 0) else 0),
            step(_RETURN, _ERRNO | _EPERM),
            step(_RETURN, _ALLOW),
        ]

    program = [
        step(_LOAD, _ARCHITECTURE_AT),
        step(_EQUAL, architecture, 1, 0),
        step(_RETURN, _ERRNO | _EPERM),
    ]
    program += [step(_LOAD, _NUMBER_AT)]
    if column == 0:
        program += when(_AT_LEAST, 0x40000000, _ERRNO | _EPERM)  # the x32 numbering of the same calls
    program += when(_EQUAL, _CLONE3[column] or 0, _ERRNO | _ENOSYS)  # glibc falls back to clone
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            program += when(_EQUAL, number, _ERRNO | _EPERM)
    program += when_argument(_CLONE[column] or 0, 0, _CLONE_THREAD, refuse_if_set=False)
    program += when_argument(_OPENAT[column] or 0, 2, _WRITING, refuse_if_set=True)
    if (number := _OPEN[column]) is not None:
        program += when_argument(number, 1, _WRITING, refuse_if_set=True)
    return b"".join([*program, step(_RETURN, _ALLOW)])


def restrict_system_calls() -> bool:
    """seccomp: no sockets, no new processes, no changes to files; threads stay allowed, as XLA needs them."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES or sys.maxsize < 2**32:
        return False
    code = _filter(*_ARCHITECTURES[platform.machine()])
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions)), 16
    )
    _no_new_privileges()
    if _libc().prctl(_SET_SECCOMP, _FILTER_MODE, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp is not available")
    return True
