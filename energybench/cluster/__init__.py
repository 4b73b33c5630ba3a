"""Blocks of one run as jobs of an engine that people run already: Slurm, Ray.

Placing, queueing, requeueing and the failure of nodes are the engine's work. Which blocks are missing, what a job runs,
and the one report at the end are ours: each job runs `energybench run SUITE --block K`, which any engine can call.
It may import every room up to the runner; the command line alone imports it. Nothing here imports torch.
Start with `slurm.py`: from a suite on a login node to its report. `job_script.py` is what a job runs there.
"""
