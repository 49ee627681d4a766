"""Mutation testing: change one place of the program, and see whether a test notices.

`python -m tests.mutants --help`, or `make mutants`. `operators` finds what can be changed, `trial`
runs tests on a changed copy, `coverage` knows which tests reach a line, `report` writes the result.

mutmut leaves out decorated functions, module constants and class bodies, where much of this program
decides (validators, limits, tables), and shows tests that read the source a source with all
mutants in it. cosmic-ray changes the working tree. Hence these few hundred lines.
"""
