"""What a route does with jobs: one file each for create, read, list and delete.

`binding` gives a route its part; `patience` asks the mirror while the app is silent.
"""
