"""What people run: the command line, the local cluster, faults, evaluation.

It may import every other package of the project; none of them may import it.
"""
