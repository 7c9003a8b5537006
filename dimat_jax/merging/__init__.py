"""The merge: permuted weighted averages of all agents, and the statistics of what comes out.

May import `execution`, `matching`, `symmetries`, `training` and what stands above them.
"""
