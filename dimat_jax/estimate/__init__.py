"""What a run needs before it starts: memory and time, on devices that need not be here.

May import `simulation` and the rooms before it.
"""
