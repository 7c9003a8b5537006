"""Where and how all agents run at once: devices, placement, forms of execution, kernels, timing.

May import `jaxprs`, `types` and, for its cache, `datasets` only: it knows nothing of models or
methods.
"""
