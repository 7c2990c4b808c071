"""Errors that a user sees.

UserError           what was given, what is allowed, what to do: one line, exit code 2
DamagedImageError   one image cannot be used, and why; the caller knows which one, and skips, replaces or stops
"""


class UserError(ValueError):
    """A user's mistake: one clear line that says what was given, what is allowed and what to do."""


class DamagedImageError(Exception):
    """An image's bytes do not match their checksum, or do not decode; a loader replaces it and counts it."""
