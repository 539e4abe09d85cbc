"""`python -m fastfuse` and the `fastfuse` command. `info` runs on torch alone; the other commands need click."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from fastfuse import cli
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        if sys.argv[1:] != ["info"]:
            sys.exit("this command needs click: pip install 'fastfuse[captioner]'; without it there is `fastfuse info`")
        from fastfuse.info import report

        print(report())
    else:
        cli.main()


if __name__ == "__main__":
    main()
