"""``weights_only`` for torch before 2.4, whose own can be taught no further names.

Given to ``torch.load`` as its ``pickle_module``. Names are looked up in :data:`ALLOWED`
and never imported; only what is found there is called, and only its instances are given
attributes. So it lets through what a later torch does after ``add_safe_globals``
(https://pytorch.org/docs/2.4/notes/serialization.html).
"""

from __future__ import annotations

import pickle
from pickle import UnpicklingError
from typing import Any

ALLOWED: dict[str, Any] = {}  # by full names, torch's own among them


# The one in Python, for that in C calls no method of ours but `find_class`.
_Unpickler: Any = pickle._Unpickler


class Unpickler(_Unpickler):  # type: ignore[misc]
    """Reads a pickle that names nothing but what is allowed.

    Raises:
        pickle.UnpicklingError: In the words of torch's own, see ``refused_global``.
    """

    dispatch = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """What a file names, without an import."""
        full = f"{module}.{name}"
        # Pickles of protocol 2 call it as Python 2 did.
        full = full.replace("__builtin__.", "builtins.", 1)
        if full not in ALLOWED:
            raise UnpicklingError(f"Unsupported global: GLOBAL {full} is not allowed.")
        return ALLOWED[full]

    def load_reduce(self) -> None:
        """Call a function or class."""
        self._see(self.stack[-2], "call")
        super().load_reduce()

    def load_newobj(self) -> None:
        """Make an object without ``__init__``."""
        self._see(self.stack[-2], "make a new")
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        """The same, with keyword arguments."""
        self._see(self.stack[-3], "make a new")
        super().load_newobj_ex()

    def load_build(self) -> None:
        """Give an object its attributes: never a class or a function."""
        self._see(type(self.stack[-2]), "give attributes to a")
        super().load_build()

    def load_obj(self) -> None:
        """Of protocols before 2, which torch does not write."""
        raise UnpicklingError("The file has an instruction that torch does not write.")

    def _see(self, what: Any, to: str) -> None:
        if not any(what is allowed for allowed in ALLOWED.values()):
            raise UnpicklingError(f"The file wants to {to} {what}: not allowed.")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.OBJ[0]] = dispatch[pickle.INST[0]] = load_obj


def load(file: Any, **options: Any) -> Any:
    """As ``pickle.load``; torch reads the beginning of files before 1.6 with it."""
    return Unpickler(file, **options).load()
