"""Sockets of other processes, as a debugger gets them."""

import ctypes
import os
import socket

_PIDFD_GETFD = 438
"""The number of the system call, on every architecture."""


def socket_of(pid: int, number: int) -> socket.socket:
    """A copy of descriptor ``number`` of a process below this one.

    Raises:
        OSError: There is no such process or descriptor, or the kernel does not let us.
    """
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    pidfd = os.pidfd_open(pid)
    try:
        copy = syscall(_PIDFD_GETFD, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return socket.socket(fileno=copy)
