"""What every test may rely on."""

import signal

# Tests send themselves Ctrl-C; whatever started them may ignore it, as shells do for what runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
