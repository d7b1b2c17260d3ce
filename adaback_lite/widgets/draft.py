"""Settings while somebody edits them: some of what was entered may not be valid yet."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import UserError

T = TypeVar("T")


class Draft(Generic[T]):
    """The last valid settings, and what was entered since and refused.

    Args:
        start: valid settings.
        make: settings from values by name; raises UserError for what is not valid.
        flat: the values by name of settings.

    `valid` is always valid. `errors` has a sentence for each name that was refused; its value waits, and is taken as soon as
    the others allow it: two changes may be right only together.
    """

    def __init__(self, start: T, make: Callable[[dict[str, Any]], T], flat: Callable[[T], dict[str, Any]]):
        self.valid, self._make, self._flat = start, make, flat
        self.errors: dict[str, str] = {}
        self._waiting: dict[str, Any] = {}

    @property
    def values(self) -> dict[str, Any]:
        """The valid settings by name."""
        return self._flat(self.valid)

    def put(self, values: dict[str, Any]) -> bool:
        """Enter values by name. Returns whether `valid` changed."""
        before = self.valid
        self._waiting |= values
        together = self._take(list(self._waiting)) or self._take(list(values))
        if not together:
            for name in values:
                self._take([name])
        for name in list(self._waiting):  # what was refused earlier may fit now
            self._take([name])
        return self.valid != before

    def replace(self, settings: T) -> None:
        """Begin again from valid settings."""
        self.valid = settings
        self._waiting, self.errors = {}, {}

    def _take(self, names: list[str]) -> bool:
        try:
            self.valid = self._make({**self.values, **{name: self._waiting[name] for name in names}})
        except UserError as error:
            if len(names) == 1:
                self.errors[names[0]] = str(error)
            return False
        for name in names:
            del self._waiting[name]
            self.errors.pop(name, None)
        return True
