"""Joules in pytest: a fixture, a marker with a budget, a table at the end of a session.

It may import verdict, records, meter and common; `energybench/pytest_plugin.py` is its only entrance.
Start with `fixture.py`.
"""
