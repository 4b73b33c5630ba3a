"""What is printed of a run: terminal, Markdown, HTML, notebook, figures, carbon, exports.

It may import verdict and what lies below, and judges nothing: every figure and sentence of a verdict is made there.
Start with `pages.py`, which writes a run's page and figures.
"""
