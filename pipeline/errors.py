"""The one exception that means "the user can mend this".

Its text names the file or key, the value found, and the next action. Command lines print it as one message without a
traceback and exit with `EXIT_CODE`; anything else is our bug and keeps its traceback.
"""

EXIT_CODE = 2


class UserError(Exception):
    """A mistake in a config, a command line or a data set, told in one readable message."""
