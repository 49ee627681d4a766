"""multipart/form-data, whoever reads it: `reader` yields parts and their bytes while they come,
`values` reads and writes what stands in their headers, `digests` checks what a client has claimed
of the body. Knows nothing of what the parts are for; `upload` does.
"""
