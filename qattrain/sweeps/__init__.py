"""Sweeps: a grid of settings, every point of it a run, on this machine's cores or on a cluster.

grid -> points -> settle -> cells -> crew (processes here, or workers of a dask cluster) -> run folders -> results

Only `cells`, and what imports it, needs torch: the process that plans, waits and reports is small and starts at once.
"""
