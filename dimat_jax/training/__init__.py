"""One agent's work: its state, a step of local training, evaluation, learning-rate schedules.

Written for one agent; `execution` lifts it to all. May import what stands above: `execution`,
`datasets`, `models`.
"""
