"""What a run leaves on disk to go on from, and to be read again: checkpoints, final networks.

May import every room but `report`.
"""
