"""Bodies that wait: in memory first, then in a nameless file, within bounds of the whole process.

`Spool` is what all of them share: the directory, the bound on bytes in files, the threads that
touch the disk, what is counted. Two shapes of a body use it:

- `SpooledBody` is kept whole and read any number of times: a request that waits for its end before
  it takes a connection, a copy for a retry, an upload whose file a probe reads as it grows.

      body = spool.body(on_change, sha256=True)
      body.append(pieces)           # while not body.blocked; once body.full: stop
      body.end()                    # that was all of it
      reader = body.reader()        # as many as wanted: each begins at the beginning
      pieces = reader.take()        # [] : nothing right now, `on_change` will come
      body.to_file()                # put it in a file even if it is small; later, see on_change:
      body.fd, body.written         # the descriptor, and how many bytes can be read from it by now
      body.frame(before, after)     # what stands around the content when it is read back
      body.digest()                 # SHA-256 of the content, once it has ended
      body.close()                  # always

- `SpooledQueue` is read once, while it is written: an answer on its way to a slow client. What has
  been read is gone.

Nothing here blocks the event loop: files are opened, written and closed by threads, and read by the
loop only where the kernel has the bytes at hand (`RWF_NOWAIT`). `on_change` is called from the
event loop, never from within a call of its owner.

A disk that is full, gone or broken loses nothing: what was not written stays in memory, `full` says
why, and the owner goes on without a spool. That is counted, and logged when it begins and ends.
"""

from proxy.spool.body import BodyReader, Framing, SpooledBody
from proxy.spool.file import SpoolError
from proxy.spool.queue import SpooledQueue
from proxy.spool.spool import Spool

__all__ = ["BodyReader", "Framing", "Spool", "SpoolError", "SpooledBody", "SpooledQueue"]
