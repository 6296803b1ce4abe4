"""The one package that every quorumfs process shares: protocol, messages, errors, digest, configuration.

It must not import any other package of the project (a test holds it so). Nothing in it
decides about replicas or files; it carries what the others decide.
"""
