"""Settings of all tests."""

import signal

from hypothesis import settings

# A busy machine is not a failure.
settings.register_profile("moe4", deadline=None)
settings.load_profile("moe4")

# A shell's background job ignores SIGINT, and so would every program that a test starts and stops with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
