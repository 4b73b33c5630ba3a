"""Colours and marks of every picture: ink and paper turn on a dark page, the colours of series are seen on both."""

PAPER, INK, MUTED, GRID, BAND = "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#e4e9ee"
DARK = {PAPER: "#0d1117", INK: "#e6edf3", MUTED: "#9198a1", GRID: "#3d444d", BAND: "#262c36"}
SERIES = ("#3f7fd0", "#c8621b", "#2f8f57", "#9a62c7", "#cf4a6b", "#178a99", "#8b7a1f", "#7a828c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PLAIN = MUTED
