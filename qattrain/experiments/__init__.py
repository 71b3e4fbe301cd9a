"""Many runs side by side: comparisons of methods, and sweeps over a grid of settings, here or on a cluster.

grid -> points -> settle -> cells -> workers (processes here, or those of a dask cluster) -> run folders -> results

Only `cells` and `comparison`, and what imports them, need torch: the process that plans a sweep, waits and reports is
small and starts at once.
"""
