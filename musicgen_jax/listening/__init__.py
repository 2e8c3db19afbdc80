"""Listening studies: people score clips blind in a browser, and their scores become a table.

    folders of clips -> `pairing` -> `stimuli` -> a folder STUDY, by `prepare`
    STUDY -> `order` -> `server`, on `web`, and its page -> `answers` in SQLite
    answers -> `screening` -> `intervals`, `significance`, `agreement` -> `analysis` -> `plot`

No file here imports jax.
"""
