"""The metadata server: the namespace, inodes, extents, witnesses and sessions of one cluster, in SQLite.

It must not import another package of the project than `wire`, and it knows no data server: which
blocks exist where is the mediator's business. All of it but the log's fdatasync and the checkpoints
runs in the thread of one event loop; each call is a plain function and one transaction.
"""
