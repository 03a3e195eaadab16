"""What a command ends with, beside 0."""

from __future__ import annotations

import signal

USAGE = 2  # something that the user can put right: one sentence said what
STOPPED = 128 + signal.SIGTERM  # as a shell reports it: not finished, and the same command goes on
PIPE = 128 + 13  # as a shell reports SIGPIPE: who read the output has stopped
