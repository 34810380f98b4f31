"""Errors as a pool of processes hands them on: pickled."""

from __future__ import annotations

import pickle

from vqedge import errors
from vqedge.errors import ParityError, StreamEnded, VqedgeError


def test_an_error_reaches_another_process_as_it_was() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = [kind("why") for kind in kinds if issubclass(kind, VqedgeError)]
    raised += [StreamEnded(), ParityError("far off", {"ids_differ": 0.5})]
    found = [pickle.loads(pickle.dumps(error)) for error in raised]
    assert [(type(error), str(error)) for error in found] == [
        (type(error), str(error)) for error in raised
    ]
    assert found[-1].figures == {"ids_differ": 0.5}
