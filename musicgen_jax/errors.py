"""The one exception that the command line turns into a line of text and exit code 2."""


class UserError(ValueError):
    """Something that the caller can mend: the message names the fault and the way out."""
