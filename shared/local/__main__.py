"""`python -m shared.local run|demo`: what `make run` and `make demo` start."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - before the imports below fail with a puzzling message
    sys.exit("Python 3.11 or newer is needed; name one with: make run PYTHON=/path/to/python3.11")

import asyncio
import os
import signal

from shared.config.settings import SettingsError
from shared.local.child import EmbeddedError, end_with_parent
from shared.local.stack import Stack, serve_until_signalled
from shared.local.supervisor import say


def main() -> int:
    if sys.argv[1:] not in (["run"], ["demo"]):
        print("usage: python -m shared.local run|demo", file=sys.stderr)
        return 2
    if "MAKELEVEL" in os.environ:
        end_with_parent(signal.SIGTERM, os.getppid())  # so that killing make ends us too
    try:
        asyncio.run(serve_until_signalled(Stack(is_demo=sys.argv[1] == "demo")))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except EmbeddedError as error:
        print(error, file=sys.stderr)
        return 1
    say("Stopped; the data stays for the next start")
    return 0


if __name__ == "__main__":
    sys.exit(main())
