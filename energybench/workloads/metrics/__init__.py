"""How quality is computed: what the `evaluate` of several tasks share, on tensors, without a library of its own.

Which way is better, in which unit and range, a task declares itself (`Task.metrics`). Start with `confusion.py`.
"""
