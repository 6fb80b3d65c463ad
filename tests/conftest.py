"""What every test may rely on."""

import signal

# Tests send themselves Ctrl-C and hang-ups; whatever started them may ignore both, as shells and nohup do.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
