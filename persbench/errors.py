"""Errors that a user can act on: the command line prints their message as one line."""


class PersbenchError(Exception):
    """Something the user can fix; the message says how."""


class UnknownNameError(PersbenchError):
    """A name that nothing is registered under."""


class SkippedCell(PersbenchError):
    """A cell that cannot exist (a capability is missing); the message is the reason shown on the leaderboard."""
