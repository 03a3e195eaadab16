"""What a command ends with, beside 0."""

from __future__ import annotations

import signal

USAGE = 2  # settings or data that the user can put right: one sentence said what
FAULT = 1  # the machine refused (a place, a package, memory), or a defect of ours; also a check's "no"
INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it: Ctrl-C
STOPPED = 128 + signal.SIGTERM  # as a shell reports it: not finished, and the same command goes on
PIPE = 128 + 13  # as a shell reports SIGPIPE: who read the output has stopped
