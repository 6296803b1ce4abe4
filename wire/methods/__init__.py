"""The method tables: what each server offers, declared once for both encodings and both ends.

A table is a class whose public functions are the methods: their names, their annotations (from
which parameters are rebuilt and signatures told), their docstrings (the help). A server registers
an implementation whose methods have the same names and parameters, plain or async; a client
calls `client.call(deadline_seconds, Table.method, ...)` and gets the annotated result. Method
names are unique over all tables that one server offers.

Every method is safe to repeat: reads by nature, block calls because blocks are immutable,
namespace calls by their Ticket. Tables hold no code and import nothing but messages.
"""

from wire.methods.bookkeeping import BookkeepingMethods
from wire.methods.common import CommonMethods
from wire.methods.data import DataMethods, LabMethods
from wire.methods.mediator import MediatorMethods
from wire.methods.namespace import NamespaceMethods

__all__ = [
    "BookkeepingMethods",
    "CommonMethods",
    "DataMethods",
    "LabMethods",
    "MediatorMethods",
    "NamespaceMethods",
]
