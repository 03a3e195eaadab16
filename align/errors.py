"""The one exception for what a user can put right."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where (file, row, key) and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
