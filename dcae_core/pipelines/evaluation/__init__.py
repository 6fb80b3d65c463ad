"""The parts of an evaluation: where images come from, what is measured on them, how the work is divided and added."""
