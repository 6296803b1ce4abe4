"""The mount: POSIX semantics, dirty buffers, read-ahead and caches over the mediator's methods.

Layers, each knowing only those below it: operations (the FUSE adapters; errno and the binding live
there alone) -> filesystem (POSIX by inode) -> inodes, writeback, readahead, cache -> ports (what
they need of a server) <- remote (the ports over the wire). It must not import any other server package.
"""
