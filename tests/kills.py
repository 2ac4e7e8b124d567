"""Every command cut short at random moments and run again: does it end as if nothing had been?

`python tests/kills.py kill 10` kills each command 10 times, and prints what came of it; `term` ends
it by SIGTERM, `disk` gives it a disk on which no file may grow beyond a random size.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
from command_line import TINY, Programs, programs
from command_line import Command as Running
from damaged_database import damage
from small_encoders import crops, tiny

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.store.augmentation import Augmented
from cwf_milvus.store.backup import restore
from cwf_milvus.store.parquet import import_collection

N = 40
UPLOADS = "uploads"
_SENT = 12
Command = Callable[[Path], list[object]]


@dataclass
class Outcome:
    """What came of an operation.

    Attributes:
        landed: how often it was cut short; a signal may find it at its end.
        wrong: what was other than after an undisturbed run, a line each.
    """

    landed: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Operation:
    """A command that is killed: what is there before, what is run, and where its result is."""

    command: Command
    prepare: Callable[[Path], None] = lambda folder: None
    result: str = "photos.db"


def _place(folder: Path) -> list[object]:
    return ["--uri", folder / "photos.db"]


def _names(folder: Path, kind: slice) -> list[Path]:
    return sorted((folder / "photos").glob("*.png"))[kind]


def _forget_photos(folder: Path) -> None:
    for photo in _names(folder, slice(0, 7)):
        photo.unlink()


def _tell(folder: Path) -> None:
    lines = [{"file_name": p.name, "shelf": p.stem} for p in _names(folder, slice(None))]
    (folder / "told.jsonl").write_text("\n".join(map(json.dumps, lines)))


def _lose(folder: Path) -> None:
    with InstanceCollection.open(folder / "photos.db", "photos") as photos:
        photos.add(photos_of(folder)[:1], progress=False)  # flushes
        photos.store.delete("photos", "uri", sorted(photos.uris())[:20])


def _damage(folder: Path) -> None:
    damage(folder / "photos.db", "first segment", "truncated")


def _without_keypoints(folder: Path) -> None:
    shutil.rmtree(folder / "photos.db")
    make(folder, keypoints=0)


def _without_photos(folder: Path) -> None:
    shutil.rmtree(folder / "photos.db")


def _backed_up(folder: Path) -> None:
    from cwf_milvus.store.backup import backup

    with InstanceCollection.open(folder / "photos.db", "photos") as photos:
        backup(photos, folder / "b.zip")


OPERATIONS = {
    "index": Operation(
        lambda folder: ["index", folder / "photos", *_place(folder), *TINY, "--batch-size", "4"],
        _without_photos,
    ),
    "index --to-parquet": Operation(
        lambda folder: [
            *("index", folder / "photos", "--to-parquet", folder / "parquet"),
            *(*TINY, "--batch-size", "4", "--quiet"),
        ],
        _without_photos,
        "parquet",
    ),
    "export": Operation(
        lambda folder: ["export", "--parquet", folder / "parquet", *_place(folder)],
        result="parquet",
    ),
    "remove": Operation(lambda folder: ["remove", *_names(folder, slice(0, 20)), *_place(folder)]),
    "index --prune": Operation(
        lambda folder: ["index", folder / "photos", "--prune", *_place(folder), "--quiet"],
        _forget_photos,
    ),
    "index --metadata": Operation(
        lambda folder: [
            *("index", folder / "photos", "--metadata", folder / "told.jsonl"),
            *(*_place(folder), "--quiet"),
        ],
        _tell,
    ),
    "index --upgrade": Operation(
        lambda folder: ["index", "--upgrade", *_place(folder), "--quiet"], _without_keypoints
    ),
    "graph": Operation(lambda folder: ["graph", *_place(folder), "--quiet"]),
    "augment": Operation(lambda folder: ["augment", *_place(folder)]),
    "repair": Operation(lambda folder: ["repair", *_place(folder), "--quiet"], _lose),
    "repair of damaged files": Operation(
        lambda folder: ["repair", *_place(folder), "--quiet"], _damage, "photos.repaired.db"
    ),
    "backup": Operation(
        lambda folder: ["backup", folder / "b.zip", *_place(folder)], result="b.zip"
    ),
    "copy": Operation(
        lambda folder: ["copy", folder / "photos.db", folder / "copied.db", "--quiet"],
        result="copied.db",
    ),
    "restore": Operation(
        lambda folder: ["restore", folder / "b.zip", "--uri", folder / "new.db"],
        _backed_up,
        "new.db",
    ),
}


_DONE = {"remove": "not in photos", "restore": "already: give another name"}
"""What a command says when it was killed after all was done, and is run again."""


def photos_of(folder: Path) -> list[str]:
    return [str(photo) for photo in _names(folder, slice(None))]


def make(folder: Path, **settings: Any) -> None:
    """Make photos, where there are none, and a collection of them."""
    place = folder / "photos"
    if not place.exists():
        place.mkdir(parents=True)
        for i, pixels in enumerate(crops(N)):
            PIL.Image.fromarray(pixels).save(place / f"{i:02}.png")
    encoder = tiny(whitening=None, batch_size=4, **settings)
    with InstanceCollection.create(folder / "photos.db", "photos", encoder) as photos:
        photos.add(photos_of(folder), progress=False)


def state(folder: Path, result: str) -> dict[str, Any]:
    """Return all that a collection holds, as it is to be the same after a kill."""
    database = folder / result
    if result.endswith(".zip"):
        shutil.rmtree(folder / "look.db", ignore_errors=True)
        restore(database, folder / "look.db")
        database = folder / "look.db"
    elif database.is_dir() and not result.endswith(".db"):
        shutil.rmtree(folder / "look.db", ignore_errors=True)
        import_collection(database, folder / "look.db")
        database = folder / "look.db"
    with InstanceCollection.open(database, "photos") as photos:
        outcome = photos.verify()
        rows = photos.raw_rows(list(photos.uris()))
        found: dict[str, Any] = {
            "verify": (outcome.ok, str(outcome)),
            "rows": {Path(uri).name: _plain(row) for uri, row in rows.items()},
        }
        if photos.has_graph():
            graph = [row for row in photos.graph.scan() if not isinstance(row, str)]
            names = {row.number: Path(row.uri).name for row in graph}
            found["graph"] = {
                Path(row.uri).name: sorted(
                    (names[e["number"]], float(e["similarity"]), int(e["inliers"]))
                    for e in row.edges
                )
                for row in graph
            }
        augmented = Augmented(photos)
        if augmented.exists():
            photos.store.load(augmented.name)
            found["augmented"] = {
                Path(row["uri"]).name: [round(float(x), 5) for x in row["descriptor"]]
                for row in photos.store.scan(augmented.name, "uri", ["descriptor"])
            }
    return found


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its name's folder, and what the last bits of scores are in."""
    left = {name: row[name] for name in row.keys() - {"uri", "checksum"}}
    left["descriptor"] = [round(float(x), 5) for x in row["descriptor"]]
    left["class_scores"] = [round(float(x), 6) for x in row["class_scores"]]
    return left


def cut_short_and_repeat(
    name: str,
    how: str,
    n_times: int,
    start: Programs,
    folder: Path,
    numbers: random.Random,
) -> Outcome:
    """Cut a command short, run it again, and compare what is there with an undisturbed run's.

    Args:
        name: of `OPERATIONS`.
        how: "kill", "term" or "disk".
        n_times: at moments spread over the run; those that find it ended are made up for, up to
            twice as many.
        start: starts commands.
        folder: for what is made, which is not there yet.
        numbers: for the moments.
    """
    operation, outcome = OPERATIONS[name], Outcome()
    make(folder / "before")
    operation.prepare(folder / "before")
    here = folder / "here"

    def begin() -> None:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(folder / "before", here)

    def command() -> list[object]:
        """Return the command: its photos are those that the rows name, in "before"."""
        return [
            Path(str(part).replace(str(here / "photos"), str(folder / "before" / "photos")))
            if str(part).startswith(str(here / "photos")) and not str(part).endswith(".db")
            else part
            for part in operation.command(here)
        ]

    begin()
    began = time.monotonic()
    status, text = start.run(*command())
    lasted = time.monotonic() - began
    assert status == 0, text
    right = state(here, operation.result)
    assert right["verify"][0], right["verify"]
    for i in range(2 * n_times):
        if outcome.landed == n_times:
            break
        begin()
        if how == "disk":
            most = int(10 ** numbers.uniform(2.5, 5.5))
            running = start.start(*command(), file_bytes=most)
        else:
            running = start.start(*command())
            time.sleep(lasted * (i % n_times + numbers.random()) / n_times)
            running.send(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        sent = time.monotonic()
        status = running.wait()
        outcome.landed += status == -signal.SIGKILL if how == "kill" else status != 0
        if how == "term" and time.monotonic() - sent > 2:
            outcome.wrong.append(f"{name}, {i}: ended after {time.monotonic() - sent:.1f} s")
        if "Traceback" in running.text():
            outcome.wrong.append(f"{name}, {i}: {running.text()[-2000:]}")
        status, text = start.run(*command())
        if status and _DONE.get(name, "never") not in text:
            outcome.wrong.append(f"{name}, {i}: status {status}: {text[-400:]}")
            continue
        after = state(here, operation.result)
        outcome.wrong += [
            f"{name}, {i}: {part} differs" for part in right if after.get(part) != right[part]
        ]
    return outcome


def cut_uploads_short(
    how: str, n_times: int, start: Programs, folder: Path, numbers: random.Random
) -> Outcome:
    """Cut a service short while it takes photos, and give another all of them again.

    Args:
        how: "kill" or "term".
        n_times: at moments spread over the upload.
        start: starts commands.
        folder: for what is made, which is not there yet.
        numbers: for the moments.
    """
    make(folder / "before")
    number = signal.SIGKILL if how == "kill" else signal.SIGTERM
    sent = {f"{i:02}.png": _png(pixels) for i, pixels in enumerate(crops(N + _SENT)[N:])}
    here, outcome = folder / "here", Outcome()

    def begin() -> None:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(folder / "before", here)

    def upload(after: float | None = None) -> tuple[float, bool]:
        """Send all photos to a service of our own, cut short after so many seconds.

        Returns:
            How long it took, and whether all photos had been taken.
        """
        words = ["serve", *_place(here), "--writable", "--added", here / "added", "--port", 0]
        running = start.start(*words)
        try:
            address = _address(running)
            with httpx.Client(base_url=address, timeout=60) as client:
                client.get("/readyz").raise_for_status()
                files = [("photos", (name, data, "image/png")) for name, data in sent.items()]
                began = time.monotonic()
                if after is not None:
                    killer = threading.Timer(after, running.send, [number])
                    killer.start()
                whole = False
                with suppress(httpx.TransportError if after is not None else ()):
                    answer = client.post("/api/photos", files=files)
                    whole = answer.status_code == 200 and "failed" not in answer.text
                    assert whole or after is not None, answer.text
                lasted = time.monotonic() - began
                if after is not None:
                    killer.join()
                return lasted, whole
        finally:
            running.send(signal.SIGTERM)
            running.wait()

    begin()
    lasted, _ = upload()
    right = state(here, "photos.db")
    assert len(right["rows"]) == N + _SENT
    for i in range(2 * n_times):
        if outcome.landed == n_times:
            break
        begin()
        outcome.landed += not upload(after=lasted * (i % n_times + numbers.random()) / n_times)[1]
        upload()
        after = state(here, "photos.db")
        outcome.wrong += [
            f"uploads, {i}: {part} differs" for part in right if after[part] != right[part]
        ]
        kept = [path for path in (here / "added").iterdir() if not path.name.startswith(".")]
        if len(kept) != _SENT:
            outcome.wrong.append(f"uploads, {i}: {len(kept)} files for {_SENT} photos")
    return outcome


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _address(running: Running) -> str:
    """Return where a service that was just started answers, once it does."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := re.search(r"http://127\.0\.0\.1:\d+", running.text()):
            with suppress(httpx.TransportError):
                httpx.get(f"{found[0]}/healthz", timeout=5)
                return found[0]
        time.sleep(0.05)
    raise AssertionError(running.text())


def main() -> None:
    """Cut every command short so many times, and print what came of it."""
    how, n_times, numbers = sys.argv[1], int(sys.argv[2]), random.Random(18)
    chosen = sys.argv[3:] or [*OPERATIONS, *([UPLOADS] if how != "disk" else [])]
    with tempfile.TemporaryDirectory() as folder, programs(Path(folder)) as start:
        for i, name in enumerate(chosen):
            began = time.monotonic()
            place = Path(folder) / str(i)
            if name == UPLOADS:
                outcome = cut_uploads_short(how, n_times, start, place, numbers)
            else:
                outcome = cut_short_and_repeat(name, how, n_times, start, place, numbers)
            lasted = time.monotonic() - began
            landed = f"{how} {outcome.landed} times"
            print(f"{name}: {landed}, {len(outcome.wrong)} wrong, {lasted:.0f} s", flush=True)
            for line in outcome.wrong:
                print("   ", line, flush=True)
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
