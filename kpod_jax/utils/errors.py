"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the user can put right: bad input, a bad setting, a full disk.

    The message says what was wrong, where, what was expected and what to do. `main` prints it
    without a traceback and exits with status 2.
    """
