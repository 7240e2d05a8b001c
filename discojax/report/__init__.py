"""What people look at: the leaderboard, plots, and what the command line prints of a loss.

`summary.show` ends a run; `leaderboard` and `plots` draw from plain rows and arrays; `terminal`
shows the library, one loss and its curve, and the gate's verdict.
"""
