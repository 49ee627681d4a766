"""Buffered bodies: in memory first, then in a nameless file, within limits of the whole process.

`Spool` is what they share: the directory, the limit for bytes in files, the disk threads and the
counters. There are two kinds of bodies:

- `SpooledBody` is kept whole and can be read any number of times: a request buffered before it
  takes a connection, a copy for a retry, an upload that a probe reads as it grows.

      body = spool.body(on_change, sha256=True)
      body.append(pieces)           # while not body.blocked; once body.full: stop
      body.end()                    # the body is complete
      reader = body.reader()        # any number of them, each starts at the beginning
      pieces = reader.take()        # []: nothing yet, `on_change` follows
      body.to_file()                # write it to a file, however small; after on_change:
      body.fd, body.written         # its descriptor, and how many bytes are in it by now
      body.frame(before, after)     # what readers get before and after the content
      body.digest()                 # SHA-256 of the content, once it has ended
      body.close()                  # always

- `SpooledQueue` is read once, while it is written: a response on its way to a slow client. Bytes
  that were read are dropped.

Nothing here blocks the event loop: threads open, write and close the files, and the loop reads them
only if the kernel has the bytes in memory (`RWF_NOWAIT`). `on_change` is called from the event
loop, never during a call by the owner.

A disk that is full, missing or broken loses nothing: unwritten bytes stay in memory, `full` has the
reason, and the owner continues without a spool. That is counted, and logged when it starts and
ends.
"""

from proxy.spool.body import BodyReader, Framing, SpooledBody
from proxy.spool.file import SpoolError
from proxy.spool.queue import SpooledQueue
from proxy.spool.spool import Spool

__all__ = ["BodyReader", "Framing", "Spool", "SpoolError", "SpooledBody", "SpooledQueue"]
