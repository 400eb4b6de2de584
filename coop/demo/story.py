"""The story in numbered steps, each printing what happened and the command that checks it."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from coop.demo import epilogue, learning, market, patients
from coop.demo.house import House, open_house
from coop.demo.measure import Peak, cpu_seconds
from coop.demo.narrator import Narrator
from coop.demo.stage import prepare
from coop.errors import CoopError

HONESTY: Final = (
    "Honesty: the records are real (1988, UCI Heart Disease, CC BY 4.0); people, keys and",
    "signatures are simulated (custody: demo); the hospitals named are not members of anything",
    "here; the models are never for clinical use and cannot be enabled at a bedside.",
)


def tell(*, folder: Path, serve: bool, as_json: bool) -> int:
    """Run the whole story in `folder`; returns the exit code. Every child is stopped at the end."""
    # However it is told to stop, also in the background, no child outlives it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    narrator = Narrator(quiet_stdout=as_json)
    narrator.plain("The health data cooperative, on four hospitals' records.")
    for line in HONESTY:
        narrator.plain(line)
    stage = prepare(folder)
    peak = Peak()
    facts: dict[str, Any] = {}
    try:
        with narrator.step("start", "Hub and four hospitals start"):
            house = open_house(stage, narrator)
            facts["hospitals"] = patients.hospitals(house)
        plot: list[tuple[str, str, Callable[[House, dict[str, Any]], None]]] = [
            ("enrol", "Patients enrol and sign, each with a key of her own", patients.enrol),
            ("study", "A study is proposed; each hospital signs its own approval", learning.study),
            ("training", "Twenty rounds under differential privacy", learning.training),
            (
                "evaluation",
                "The model is evaluated under privacy, beside references",
                learning.evaluation,
            ),
            ("inference", "A researcher asks: one point, one cohort question", market.inference),
            ("credits", "The fee is split, and the split recomputed", market.credits_act),
            ("withdrawal", "Ada withdraws; the next training excludes her", market.withdrawal),
            ("audit", "The whole run is audited offline", epilogue.audit),
        ]
        for name, title, act in plot:
            with narrator.step(name, title):
                act(house, facts)
            stage.check()
        facts["seconds"] = {**narrator.seconds, "all": round(narrator.elapsed(), 1)}
        facts["measured"] = {
            "peak_memory_bytes": peak.bytes,
            "cpu_seconds": round(cpu_seconds(), 1),
        }
        epilogue.close(house, facts)
        if as_json:
            print(json.dumps(facts))  # noqa: TID251  (for programs that read, nothing is signed)
        if serve:
            epilogue.keep_serving(house)
    except KeyboardInterrupt:
        narrator.plain("\nstopped; every process of the demo ends")
        return 130
    except CoopError as error:
        print(f"the demo stopped: {error}\nlogs: {folder / 'logs'}", file=sys.stderr)
        return 1
    finally:
        peak.close()
        begun = time.monotonic()
        stage.close()
        narrator.plain(f"all processes stopped in {time.monotonic() - begun:.1f} s")
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # being told twice must not end the tidying up
    raise KeyboardInterrupt
