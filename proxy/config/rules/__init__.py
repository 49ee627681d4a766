"""Rules that the schema cannot express: between keys, and about files that must fit together.

A rule looks at the validated model and reports through `findings.Findings`, which knows the lines.
The model may lack parts that the schema refused, so whether a name exists is looked up in the file
and not in the model: each mistake is reported once. `check.check` runs every rule.
"""
