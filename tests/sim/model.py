"""What one client may see of the files that only it changes. Pure.

A state maps paths to contents. As long as every call was answered there is one possible state. An error, a
killed client, or a power loss of the metadata server leaves several; the next look at everything decides.
What a failed call asked for happens by then, or never: a client looks and changes only once that is settled.
But for a metadata server whose disk takes nothing: then it may still happen, until a later call succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

State = dict[str, bytes]
Change = Callable[[State], State]


class Model:
    """The states that are possible now.

    Attributes:
        current: the newest state, if everything was done; the only possible one while `certain`.
    """

    def __init__(self) -> None:
        self.current: State = {}
        self._since_durable: list[State] = [self.current]
        self._possible: list[State] = [self.current]
        self._late: list[Change] = []
        self._anything = False
        self.certain = True

    @property
    def nothing_late(self) -> bool:
        """Whether no call that failed may still take effect."""
        return self.certain and not self._late

    def done(self, change: Change, *, durable: bool, parts: Iterable[Change] = ()) -> None:
        """A call was acknowledged; `durable` means that it cannot be undone by a power loss.

        Otherwise a power loss may leave only some `parts` of it, as a file that is made and still empty.
        """
        self._late = []
        self._since_durable += [part(self.current) for part in parts]
        self.current = change(self.current)
        self._since_durable = [self.current] if durable else [*self._since_durable, self.current]
        self._possible = [self.current]

    def unknown(self, outcomes: Iterable[Change]) -> None:
        """A call failed or nobody knows: none or one of the outcomes is so, on any state possible now."""
        outcomes = list(outcomes)
        bases = list(self._possible)
        self._possible = _distinct([*bases, *(change(base) for base in bases for change in outcomes)])
        self._since_durable += self._possible
        self._late += outcomes
        self.certain = False

    def power_lost(self) -> None:
        """Everything since the last durable call may be undone, from some point on."""
        self._possible = _distinct(self._since_durable)
        self.certain = False

    def anything(self) -> None:
        """What is there next is taken as it is.

        Power was lost during a call on an open file: it may have been carried out on the same inode under an
        older name, which the model does not know.
        """
        self._anything = True
        self.certain = False

    def saw(self, state: State, *, settled: bool = True) -> str | None:
        """Take what is really there; return what is wrong about it, or None.

        Args:
            state: what there is.
            settled: what failed before cannot happen any more.
        """
        if self._anything or any(state == possible for possible in self._possible_by_now()):
            self._anything = False
            self.current = state
            self._possible = [state]
            self._since_durable.append(state)
            self.certain = True
            if settled:
                self._late = []
            return None
        return describe_difference(state, self._possible[-1]) + f" ({len(self._possible)} possible states)"

    def accept(self, state: State) -> None:
        """Go on with a state that was wrong."""
        self._late, self._anything, self.certain = [], False, True
        self.current, self._possible, self._since_durable = state, [state], [state]

    def allows(self, path: str, content: bytes | None) -> bool:
        """Tell whether a file may be read so now; None: it is not there."""
        return any(state.get(path) == content for state in self._possible_by_now())

    def _possible_by_now(self) -> list[State]:
        late = [change(state) for state in self._possible for change in self._late]
        return [*self._possible, *late]


def _distinct(states: Iterable[State]) -> list[State]:
    found: list[State] = []
    for state in states:
        if state not in found:
            found.append(state)
    return found


def describe_difference(seen: State, expected: State) -> str:
    """Say in a line how what was seen differs from what was expected."""
    parts = []
    for path in sorted(seen.keys() | expected.keys()):
        if seen.get(path) == expected.get(path):
            continue
        parts.append(f"{path}: saw {_shown(seen.get(path))}, expected {_shown(expected.get(path))}")
    return "; ".join(parts)


def _shown(content: bytes | None) -> str:
    if content is None:
        return "nothing"
    return f"{len(content)} bytes {content[:12]!r}"


# changes


def with_content(path: str, content: bytes) -> Change:
    return lambda state: {**state, path: content}


def without(path: str) -> Change:
    return lambda state: {other: content for other, content in state.items() if other != path}


def renamed(path: str, new_path: str) -> Change:
    def change(state: State) -> State:
        if path not in state or path == new_path:
            return state
        return {**without(path)(state), new_path: state[path]}

    return change


def patched(path: str, offset: int, data: bytes) -> Change:
    def change(state: State) -> State:
        if path not in state:
            return state
        old = state[path].ljust(offset, b"\0")
        return {**state, path: old[:offset] + data + old[offset + len(data) :]}

    return change


def cut(path: str, size: int) -> Change:
    def change(state: State) -> State:
        if path not in state:
            return state
        return {**state, path: state[path][:size].ljust(size, b"\0")}

    return change
