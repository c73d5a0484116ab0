"""Benchmarks: every row a ratio in one run, against a named alternative and the machine's own limit."""
