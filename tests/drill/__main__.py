"""`make drill`: everything is killed with -9 under fifty executions at once, several times over, and then the books are checked.

Ends with 1 when a claim does not hold. The seed repeats orders and kills; what meets what is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.drill.drill import Plan, drill, new_stack


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="each kills an executor, the gateway, NATS, Postgres, all"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--minutes", type=float, default=10, help="no round begins after this long")
    parser.add_argument("--callers", type=int, default=50, help="executions at once")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs, which stays")
    return parser.parse_args()


async def main() -> int:
    args = _parse()
    plan = Plan(
        rounds=args.rounds,
        seed=args.seed,
        callers=args.callers,
        creators=12,
        minutes=args.minutes,
        between_s=(2.0, 6.0),
        freezes=True,
        settle_s=240,
    )
    began_s = time.monotonic()

    def say(what: str) -> None:
        print(f"  {time.monotonic() - began_s:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        stack = new_stack(args.keep or Path(temporary))
        await stack.start()
        try:
            print(f"seed {plan.seed}; {plan.callers} callers, {plan.rounds} rounds", flush=True)
            outcome = await drill(stack, plan, say)
        finally:
            await stack.stop()
    print("\n" + outcome.report())
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
