"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error that the user can fix, such as bad input, a bad setting or a full disk.

    The message says what was wrong, where, what was expected and what to do. `main` prints it
    without a traceback and exits with status 2.
    """
