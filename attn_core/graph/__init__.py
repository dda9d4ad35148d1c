"""Reading an index, sorting it once, and finding again what was made of it."""
