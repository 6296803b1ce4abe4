"""The quorum as one service: fans calls out to the data servers, votes, repairs, refills, collects garbage.

It keeps no durable state: it may be killed at any time, and several may run side by side, so
everything it does is safe when done twice. Imports `wire` only.
"""
