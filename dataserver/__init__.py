"""A data server: blocks in, blocks and digests out. It knows no files, no quorum and no other server."""
