"""`polyhead heads`: versions of heads, the active set and its history, on a server or in the store of a stopped one."""
