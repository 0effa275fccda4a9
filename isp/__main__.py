"""Entry point of the `isp` command: a call goes to the fork server if there is one, otherwise it runs in this process.

Nothing heavy is imported here, so a call that is handed over costs little more than starting Python.
"""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m isp` puts the current folder first, from which a yaml.py would be imported instead of PyYAML.
    folder = sys.path.pop(0)
    if os.path.realpath(folder) == os.path.dirname(os.path.dirname(os.path.realpath(__file__))):
        sys.path.append(folder)  # a clone that is not installed


def main() -> None:
    """Run `isp` or `python -m isp`.

    Environment variables, set by the Snakefile (on a cluster, by that of each job):
        ISP_WARM: Path of the fork server's socket, to which calls are handed over (see `isp.runtime.warm`).
        ISP_WARM_INSTRUCTION_SET: Instruction set of the server; calls that need another one stay in this process.
        ISP_OWNER: PID of Snakemake, with which the server, or a call in this process, exits.
    """
    # A stage computes the duration of its start-up from this time.
    os.environ["ISP_STARTED"] = repr(time.time())
    wanted = _choose_instructions()
    if "ISP_WARM" in os.environ or "ISP_OWNER" in os.environ:
        _work_for_snakemake(wanted)
    from isp.cli import main as run

    run()


def _choose_instructions() -> str | None:
    """Set the variables of a stage's instruction set before its imports, and return the name of that set."""
    from isp.errors import IspError
    from isp.runtime import instructions
    from isp.untrusted import printable

    try:
        wanted = instructions.choose(sys.argv[1:])
    except IspError as error:
        print(f"isp: {printable(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    os.environ |= instructions.variables(wanted)
    return wanted


def _work_for_snakemake(wanted: str | None) -> None:
    """Exit with the status of the call in the server, or make this process exit with Snakemake and return.

    Args:
        wanted: Instruction set of the call; None: any.
    """
    from isp.errors import IspError
    from isp.runtime import instructions, warm
    from isp.untrusted import printable

    path = os.environ.get("ISP_WARM")
    served = os.environ.get(instructions.SERVED, "native")
    subcommand = sys.argv[1:] and not sys.argv[1].startswith("-")
    try:
        if path and wanted not in (None, served):
            reason = f"its instruction set is {served}, that of this stage is {wanted}"
            print(warm.COLD + reason, file=sys.stderr, flush=True)
        elif path and subcommand and warm.available():
            try:
                raise SystemExit(warm.call(sys.argv[1:], path))
            except warm.UnavailableError as error:
                print(warm.COLD + printable(error).partition("\n")[0], file=sys.stderr, flush=True)
        if "ISP_OWNER" in os.environ:
            warm.end_with(warm.owner())
    except IspError as error:
        print(f"isp: {printable(error)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
