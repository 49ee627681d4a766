"""multipart/form-data: `reader` yields parts while their bytes arrive, `rewrite` writes them anew.

`values` holds what clients write into header fields, `digests` checks what they promised of the
body.
"""
