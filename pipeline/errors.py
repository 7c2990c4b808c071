"""Errors that a user sees.

UserError   what was given, what is allowed, what to do: one line, exit code 2
"""


class UserError(ValueError):
    """A user's mistake: one clear line that says what was given, what is allowed and what to do."""
