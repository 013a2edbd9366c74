"""A damaged file gives a committed state or a refusal, and never anything else."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.store.values import commit, created, deltas, opened, snapshot
from tests.store.workload import steps

from bettong_engine.errors import StateCorruptedError
from bettong_engine.store.interface import Meta
from bettong_engine.store.single import SingleStore

EPOCHS = 12

# All that can be asked of a store: records, application, partitions.
State = tuple[object, Meta | None, str]


@dataclass(slots=True)
class Image:
    """Files as they are at some time, and every state that was committed until then."""

    files: dict[str, bytes]
    states: list[State]


def state_of(store: SingleStore) -> State:
    records = store.get(["leader", "commit"])
    return records, store.meta(), repr(list(store.load()))


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A store as a killed engine leaves it, with much in its log."""
    path = tmp_path_factory.mktemp("running") / "data"
    store = SingleStore(path)
    store.open()
    states = [state_of(store)]
    for _ in steps(store, EPOCHS):
        if (state := state_of(store)) != states[-1]:
            states.append(state)
        if len(states) == EPOCHS:
            store._database.empty_log()
    image = Image(files_of(path), states)
    store.close()
    assert len(image.files["bettong.db-wal"]) > 100_000
    return image


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A store that was closed, so that all is in one file."""
    path = tmp_path_factory.mktemp("ended") / "data"
    store = created(path)
    for epoch in range(1, 4):
        store.append(epoch, deltas(epoch, range(4), size=3_000))
        commit(store, epoch)
    store.put_snapshot(snapshot(0, 2, b"all " * 3_000))
    state = state_of(store)
    store.close()
    image = Image(files_of(path), [state])
    assert set(image.files) == {"LOCK", "IDENTITY", "bettong.db"}
    return image


def outcome(path: Path, image: Image, damaged: dict[str, bytes]) -> str:
    """Open a damaged copy; return whether it was refused, or how old its state is."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in (image.files | damaged).items():
        (path / name).write_bytes(data)
    store = SingleStore(path)
    found: State | StateCorruptedError
    try:
        store.open()
        found = state_of(store)
    except StateCorruptedError as error:
        found = error
    finally:
        store.close()
    if isinstance(found, StateCorruptedError):
        assert str(path) in str(found)
        assert "restore" in str(found) or "name another" in str(found)
        return "refused"
    assert found in image.states, "a state that never was"
    return "newest" if found == image.states[-1] else "older"


def flips(data: bytes, step: int) -> Iterator[bytes]:
    """Yield copies with one bit of one byte changed, all over the file."""
    for place in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        yield bytes(damaged)


def test_what_is_not_damaged_is_the_newest_state(
    tmp_path: Path, running: Image, ended: Image
) -> None:
    assert outcome(tmp_path / "data", running, {}) == "newest"
    assert outcome(tmp_path / "data", ended, {}) == "newest"


def test_torn_log_gives_a_committed_prefix(tmp_path: Path, running: Image) -> None:
    log = running.files["bettong.db-wal"]

    outcomes = [
        outcome(tmp_path / "data", running, {"bettong.db-wal": log[:size]})
        for size in range(0, len(log), 1_777)
    ]

    assert "refused" not in outcomes
    assert outcomes[0] == "older"
    assert outcomes[-1] in ("older", "newest")


def test_changed_byte_in_the_log_gives_a_committed_prefix(
    tmp_path: Path, running: Image
) -> None:
    log = running.files["bettong.db-wal"]

    outcomes = {
        outcome(tmp_path / "data", running, {"bettong.db-wal": damaged})
        for damaged in flips(log, 1_511)
    }

    assert "older" in outcomes
    assert "refused" not in outcomes


def test_changed_byte_in_the_file_is_harmless_or_refused(
    tmp_path: Path, ended: Image
) -> None:
    file = ended.files["bettong.db"]

    outcomes = [
        outcome(tmp_path / "data", ended, {"bettong.db": damaged})
        for damaged in flips(file, 97)
    ]

    assert "older" not in outcomes
    # Most of the file are bodies.
    assert outcomes.count("refused") > len(outcomes) // 3


def test_changed_byte_under_a_log_is_harmless_or_refused(
    tmp_path: Path, running: Image
) -> None:
    file = running.files["bettong.db"]

    outcomes = {
        outcome(tmp_path / "data", running, {"bettong.db": damaged})
        for damaged in flips(file, 499)
    }

    assert outcomes == {"newest", "refused"}


@pytest.mark.parametrize("name", ["running", "ended"])
def test_torn_file_is_refused(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    image: Image = request.getfixturevalue(name)
    file = image.files["bettong.db"]

    outcomes = {
        outcome(tmp_path / "data", image, {"bettong.db": file[:size]})
        for size in range(0, len(file), 3_001)
    }

    assert outcomes <= {"newest", "refused"}
    assert "refused" in outcomes


def test_page_that_was_never_written_is_refused(tmp_path: Path, ended: Image) -> None:
    file = ended.files["bettong.db"]
    page = 8192

    for place in range(0, len(file), page):
        lost = file[:place] + bytes(page) + file[place + page :]
        assert outcome(tmp_path / "data", ended, {"bettong.db": lost}) == "refused"


def test_damaged_delta_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    store = created(path)
    store.append(1, deltas(1, [5, 7], size=30_000))
    commit(store, 1)
    store.close()
    file = path / "bettong.db"
    data = file.read_bytes()
    place = data.rindex(b"7/1.7/1.")
    file.write_bytes(data[:place] + b"6" + data[place + 1 :])

    store = opened(path)

    with pytest.raises(
        StateCorruptedError, match=r"bettong.db is damaged: .* partition 7, epoch 1 "
    ):
        list(store.load())
    store.close()


def test_damaged_snapshot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    store = created(path)
    store.put_snapshot(snapshot(3, 8, b"everything " * 3_000))
    store.close()
    file = path / "bettong.db"
    data = file.read_bytes()
    place = data.rindex(b"everything")
    file.write_bytes(data[:place] + b"E" + data[place + 1 :])

    store = opened(path)

    with pytest.raises(StateCorruptedError, match="snapshot of partition 3, epoch 8"):
        list(store.load())
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM record WHERE key = 'commit'",
        "DELETE FROM record WHERE key = ''",
        "UPDATE record SET value = x'39' WHERE key = 'commit'",
        "UPDATE record SET revision = 1 WHERE key = 'commit'",
        "DELETE FROM snapshot",
        "UPDATE snapshot SET epoch = 1",
        "DELETE FROM meta WHERE name = 'history'",
        "DELETE FROM meta",
        "DELETE FROM segment WHERE id = 1",
        "DELETE FROM segment WHERE id = 3",
        "UPDATE segment SET epoch = epoch + 1",
        "UPDATE segment SET id = 9 WHERE id = 1",
        "INSERT INTO segment SELECT 9, epoch, seal, head, body FROM segment LIMIT 1",
        "UPDATE segment SET body = substr(body, 2)",
        "DROP TABLE segment",
    ],
)
def test_row_that_is_not_what_was_written_is_refused(
    tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "data"
    store = created(path)
    for epoch in range(1, 4):
        store.append(epoch, deltas(epoch, range(4), size=100))
        commit(store, epoch)
    store.put_snapshot(snapshot(0, 2))
    store._database.connection.execute(statement)
    store.close()

    store = SingleStore(path)
    with pytest.raises(StateCorruptedError, match=r"bettong.db (is damaged|is not)"):
        _open_and_load(store)
    store.close()


def _open_and_load(store: SingleStore) -> None:
    store.open()
    list(store.load())


def test_damaged_schema_is_refused(tmp_path: Path, ended: Image) -> None:
    file = ended.files["bettong.db"]
    begin = file.index(b"CREATE TABLE")
    end = file.index(b"CREATE TABLE", begin + 1)

    outcomes = set()
    for place in range(begin - 40, end):
        damaged = file[:place] + b"\x81" + file[place + 1 :]
        outcomes.add(outcome(tmp_path / "data", ended, {"bettong.db": damaged}))

    assert "refused" in outcomes


def test_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    store = created(path)
    commit(store, 1)
    store._database.connection.execute(
        "UPDATE record SET value = x'32' WHERE key = 'commit'"
    )
    store.close()

    with pytest.raises(StateCorruptedError, match="record commit fails its seal"):
        SingleStore(path).open()


def test_page_that_is_free_and_in_use_is_refused_before_it_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data"
    store = created(path)
    for size in (200_000, 1):
        store.put_snapshot(snapshot(0, 1, bytes(size)))
    store.close()
    file = path / "bettong.db"
    data = bytearray(file.read_bytes())
    # The header names the first page of the list of free ones, counted from 1.
    trunk = int.from_bytes(data[32:36], "big")
    assert trunk > 0
    first = (trunk - 1) * 8192 + 8
    assert int.from_bytes(data[first : first + 4], "big") > 2
    data[first : first + 4] = (2).to_bytes(4, "big")
    file.write_bytes(data)

    with pytest.raises(StateCorruptedError, match=r"is damaged: .* restore"):
        SingleStore(path).open()
