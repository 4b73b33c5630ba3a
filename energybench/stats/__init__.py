"""Statistics of paired blocks: log ratios, Student's t, equivalence, looks that share their chances of error.

It imports the standard library and, when asked, numpy and scipy; no other room.
Start with `paired.py`.
"""
