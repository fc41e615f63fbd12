"""What all tests share."""

import signal

from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("tieline", deadline=None)
settings.load_profile("tieline")

# nohup, and a shell for what it starts in the background, have signals ignored, and children would inherit that.
# What is handled goes back to its default in a child, and this process stays as deaf as it was meant to be.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
