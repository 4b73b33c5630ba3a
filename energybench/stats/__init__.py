"""Statistics of paired blocks: log ratios, Student's t, equivalence, interim analyses that share the chance of error.

It imports the standard library and, when asked, numpy and scipy; no other room.
Start with `paired.py`.
"""
