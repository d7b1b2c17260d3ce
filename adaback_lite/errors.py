"""The one exception that is meant for a person.

Everything a user can get wrong raises `UserError` with one sentence: what is wrong, where, and what to do.
The command line prints that sentence and exits with status 2; any other exception is our mistake and keeps its traceback.
"""


class UserError(Exception):
    """A mistake the user can mend. `str(error)` is one plain sentence."""
