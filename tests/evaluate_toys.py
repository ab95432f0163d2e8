"""What processes of tests run; imports nothing that is slow."""

import os
from contextlib import suppress
from multiprocessing.connection import Connection

from streaming.evaluation.equip import Wanted
from streaming.evaluation.files import Failed


def mortal(pipe: Connection, wanted: Wanted) -> None:
    """In place of a worker: answers with a line, and dies of files whose name says so."""
    with suppress(EOFError):
        while True:
            _, asked = pipe.recv()
            if "dies" in asked.path.name:
                os._exit(9)
            pipe.send(3)
            pipe.send(Failed(file=str(asked.path), error="was here"))
