"""`dpool token`: show, make or take over the cluster's secret."""

from __future__ import annotations

import argparse
import sys

from dpool._core import cluster_key

EPILOG = """\
Copy it to another machine without showing it to anybody there:

  dpool token | ssh HOST dpool token --set
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.epilog = EPILOG
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--new", action="store_true", help="make a new token; the file must not exist")
    what.add_argument("--set", action="store_true", help="read the token from standard input and keep it in the file")
    add_file_argument(parser)


def add_file_argument(parser: argparse.ArgumentParser) -> None:
    """Where the token lies."""
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        default=None,
        help="the file that holds the token (default: DPOOL_TOKEN_FILE, or ~/.config/dpool/token)",
    )


def main(options: argparse.Namespace) -> int:
    """Carry it out."""
    path = options.token_file or cluster_key.default_path()
    try:
        if options.new:
            cluster_key.create(path)
        elif options.set:
            cluster_key.save(path, cluster_key.parse(sys.stdin.read(200), "standard input"))
        else:
            sys.stdout.write(cluster_key.format_line(cluster_key.load(path)))
    except FileExistsError:
        print(f"dpool token: there is a token at {path} already; remove it first if it is not wanted", file=sys.stderr)
        return 1
    except (cluster_key.ClusterKeyError, OSError) as error:
        print(f"dpool token: {error}", file=sys.stderr)
        return 1
    return 0
