"""What an argument may be, for Python and for the command line, which parses without jax."""

DTYPES = ("float32", "bfloat16", "int8")  # of the language model
CACHE_DTYPES = ("float32", "bfloat16", "float8_e4m3fn")  # of its keys and values
JOINS = ("hard", "crossfade")  # of windows, see `joins`
