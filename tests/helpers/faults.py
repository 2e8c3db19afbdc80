"""Functions that fail, to stand in for a library's."""


def raising(error):
    """A function of any arguments that raises `error`."""

    def fail(*args, **options):
        raise error

    return fail
