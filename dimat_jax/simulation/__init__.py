"""The run: from a `Config` to rows. Checks, set-up, compiled parts, the rounds, the result.

May import every room but `report`.
"""
