"""How the papers count: their own counting rules and the tables that they printed, held against our reading of them.

It may import workloads (the papers' models), flops and common; it is fingerprinted, since a method counts by its rules.
Start with `counting_rules.py`; `published_tables.py` holds each printed figure beside what its rule gives.
"""
