"""Becomes another program that the kernel kills when its parent dies: die_with_parent.py PARENT_PID PROGRAM ARGS...

Run as a script, never imported. It stands between fork and exec, where running Python inside a process that already has
threads could deadlock.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); survives execve

ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):  # it died before the kernel was asked
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
