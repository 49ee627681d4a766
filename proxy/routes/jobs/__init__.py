"""`job:` on a route: one file each for create, read, list and delete.

`binding` chooses the role of a route; `patience` asks the mirror while the app is silent.
"""
