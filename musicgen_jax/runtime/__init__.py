"""The machine that music is made on.

- sharding: many devices; `make_mesh`, and the table of how each weight is split
- processes: many processes; `barrier`
- memory: sizes of arrays, and freed memory back to the system; `return_freed_memory`
- compile_cache: compiled programs kept on disk; `enable`, `counting`
- user_folders: where a user's files are kept
"""
