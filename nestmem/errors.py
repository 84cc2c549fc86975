"""The one exception that is addressed to a person: its text is a single sentence, shown without a traceback."""


class UserError(Exception):
    """Bad input. The message names the argument, what came, and what was expected."""
