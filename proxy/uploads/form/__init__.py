"""multipart/form-data: `reader` parses parts as their bytes arrive, `rewrite` builds a new form.

`values` parses and writes header values, `digests` checks the digests that clients send,
`attachments` handles files beside the audio.
"""
