"""The machine that generation and training run on.

- sharding: many devices; `make_mesh`, and the table of how each weight is split
- processes: many processes; `barrier`
- memory: sizes of arrays, and returning freed memory to the system; `return_freed_memory`
- compile_cache: compiled programs on disk; `enable`, `counting`
- user_folders: the folders of a user's files
"""
