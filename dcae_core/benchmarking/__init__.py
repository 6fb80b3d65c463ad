"""How fast this machine runs what the library does, beside what the machine could do and beside other code."""
