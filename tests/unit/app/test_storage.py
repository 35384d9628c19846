"""Bytes under their digest: whole or not at all, and checked when they are read."""

import errno
import hashlib
import io
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from app import storage
from app.errors import ConfigurationError, PayloadTooLarge, StorageUnavailable
from app.settings import load_settings
from app.storage import Place
from tests.faults.flaky_store import Mood, flaky_store
from tests.object_store import point_at

SHA256 = "f" * 64


def everything_in(folder: Path) -> list[Path]:
    """Return every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def keys_in(place: Place) -> list[str]:
    """Return the name of everything in a place."""
    if isinstance(place, Path):
        return [path.relative_to(place).as_posix() for path in everything_in(place)]
    from obstore.store import S3Store

    return [found["path"] for page in S3Store.from_url(place).list() for found in page]


def damage(place: Place, sha256: str, content: bytes) -> None:
    """Put other bytes under an address."""
    if isinstance(place, Path):
        storage.path_of(place, sha256).write_bytes(content)
        return
    from obstore.store import S3Store

    S3Store.from_url(place).put(f"{sha256[:2]}/{sha256}", content)


class TestBothPlaces:
    """What holds for a folder and for a bucket alike."""

    # The last two are sent in one request and in several parts.
    @pytest.mark.parametrize("size", [0, 6, storage.CHUNK_BYTES + 1, 20_000_000])
    def test_round_trip(self, place: Place, size: int) -> None:
        content = hashlib.shake_256(b"any").digest(size)
        stored = storage.store_stream(place, io.BytesIO(content))
        assert stored == storage.Stored(hashlib.sha256(content).hexdigest(), size)
        assert keys_in(place) == [f"{stored.sha256[:2]}/{stored.sha256}"]
        assert storage.read_checked(place, stored.sha256) == content

    def test_opened_bytes_are_read_by_lines(self, place: Place) -> None:
        stored = storage.store_stream(place, io.BytesIO(b"one\ntwo\n"))
        with storage.open_stored(place, stored.sha256) as file:
            assert list(file) == [b"one\n", b"two\n"]

    def test_file_is_stored_as_its_bytes(self, place: Place, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"bytes")
        stored = storage.store_file(place, tmp_path / "file")
        assert storage.read_checked(place, stored.sha256) == b"bytes"

    def test_same_bytes_are_kept_once(self, place: Place) -> None:
        first, second = (storage.store_stream(place, io.BytesIO(b"same")) for _ in range(2))
        assert first == second
        assert len(keys_in(place)) == 1

    def test_missing_bytes_are_named(self, place: Place) -> None:
        storage.prepare(place)
        with pytest.raises(StorageUnavailable, match=f"{'f' * 64} are not in storage; restore"):
            storage.read_checked(place, "f" * 64)

    @pytest.mark.parametrize("content", [b"a raw", b"", b"a row and more"])
    def test_damage_is_noticed_before_the_first_byte(self, place: Place, content: bytes) -> None:
        stored = storage.store_stream(place, io.BytesIO(b"a row"))
        damage(place, stored.sha256, content)
        with pytest.raises(StorageUnavailable, match=f"{stored.sha256} are damaged; restore"):
            storage.open_stored(place, stored.sha256)

    def test_storing_again_mends_damage(self, place: Place) -> None:
        stored = storage.store_stream(place, io.BytesIO(b"a row"))
        damage(place, stored.sha256, b"a raw")
        storage.store_stream(place, io.BytesIO(b"a row"))
        assert storage.read_checked(place, stored.sha256) == b"a row"

    def test_too_large_keeps_nothing(self, place: Place) -> None:
        with pytest.raises(PayloadTooLarge, match="larger than 10 bytes"):
            storage.store_stream(place, io.BytesIO(b"x" * 11), max_bytes=10)
        assert keys_in(place) == []
        storage.store_stream(place, io.BytesIO(b"x" * 10), max_bytes=10)

    def test_client_that_hangs_up_leaves_nothing(self, place: Place) -> None:
        with pytest.raises(StorageUnavailable, match="nothing was kept"):
            storage.store_stream(place, io.BufferedReader(Broken()))
        assert keys_in(place) == []

    def test_discarded_bytes_are_gone_and_twice_is_harmless(self, place: Place) -> None:
        stored = storage.store_stream(place, io.BytesIO(b"a row"))
        for _ in range(2):
            storage.discard(place, stored.sha256)
        assert keys_in(place) == []

    def test_usable_place_passes_and_the_probe_leaves_nothing(self, place: Place) -> None:
        storage.prepare(place)
        storage.check(place)
        storage.probe(place)
        assert keys_in(place) == []

    @pytest.mark.parametrize("address", ["", "ab", "../" + "a" * 61, "A" * 64, "a" * 63 + "/"])
    def test_only_a_digest_is_an_address(self, place: Place, address: str) -> None:
        for function in (storage.open_stored, storage.discard):
            with pytest.raises(ValueError, match="SHA-256"):
                function(place, address)


class TestBucket:
    def test_server_that_is_down_is_unavailable(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        point_at(monkeypatch, "http://127.0.0.1:9")  # The discard service; nothing listens there.
        down = "s3://bucket-of-a-server-that-is-down"
        storage.prepare(down)
        for attempt in (
            lambda: storage.store_stream(down, io.BytesIO(b"x")),
            lambda: storage.open_stored(down, "f" * 64),
            lambda: storage.discard(down, "f" * 64),
            lambda: storage.check(down),
            lambda: storage.probe(down),
        ):
            with pytest.raises(StorageUnavailable, match=r"no usable answer.*AWS_.*try again") as caught:
                attempt()
            # Addresses of the operator's network are for the log, not for clients.
            assert "127.0.0.1" not in caught.value.message
        assert "127.0.0.1:9" in caplog.text

    @pytest.mark.parametrize("mood", ["unavailable", "cutting"])
    def test_store_that_stumbles_is_asked_again(
        self, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, mood: Mood
    ) -> None:
        with flaky_store(s3_endpoint) as flaky:
            point_at(monkeypatch, flaky.url)
            place = f"{bucket}/{mood}"
            for act in (
                lambda: storage.store_stream(place, io.BytesIO(b"some bytes")),
                lambda: storage.read_checked(place, hashlib.sha256(b"some bytes").hexdigest()),
            ):
                flaky.turn(mood)
                soon = threading.Timer(0.5, flaky.turn, ["well"])
                soon.start()
                act()
                soon.join()
            assert flaky.refused[mood] >= 2

    def test_bucket_that_does_not_exist_is_named_as_that(self, bucket: str) -> None:
        for attempt in (
            lambda: storage.store_stream("s3://no-such-bucket", io.BytesIO(b"x")),
            lambda: storage.check("s3://no-such-bucket"),
        ):
            with pytest.raises(StorageUnavailable, match="there is no such bucket"):
                attempt()

    @pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="reads a process's peak of memory from /proc"
    )
    def test_memory_stays_bounded(self, bucket: str) -> None:
        # 120 MB go through the process and back; its peak is measured.
        program = (
            "import io, sys; from pathlib import Path; from app import storage\n"
            "class Source(io.RawIOBase):\n"
            "    left = 120\n"
            "    def read(self, n=-1):\n"
            "        self.left -= 1\n"
            "        return bytes(1_000_000) if self.left >= 0 else b''\n"
            "storage.prepare(sys.argv[1])\n"
            "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
            "before = peak()\n"
            "stored = storage.store_stream(sys.argv[1], Source())\n"
            "with storage.open_stored(sys.argv[1], stored.sha256) as file: pass\n"
            "print(stored.size_bytes, (peak() - before) // 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, bucket], capture_output=True, text=True, check=True
        )
        size, grown_mib = map(int, done.stdout.split())
        assert size == 120_000_000
        assert grown_mib < 90

    def test_missing_extra_names_the_command(self) -> None:
        program = (
            "import sys; sys.modules['obstore'] = sys.modules['obstore.exceptions'] = None\n"
            "from app import storage; from app.errors import ConfigurationError\n"
            "try: storage.prepare('s3://bucket')\n"
            "except ConfigurationError as error: print(error.message)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "pip install 'tether[s3]'" in done.stdout

    def test_folder_needs_no_extra(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from app import storage\n"
            "storage.prepare(Path(sys.argv[1])); storage.probe(Path(sys.argv[1]))\n"
            "assert 'obstore' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


class TestSettings:
    def test_folder_unless_a_url_is_set(self, tmp_path: Path) -> None:
        assert load_settings({}, home=tmp_path).storage == tmp_path / "storage"
        url = "s3://bucket/some/prefix"
        assert load_settings({"TETHER_STORAGE_URL": url}, home=tmp_path).storage == url

    @pytest.mark.parametrize(
        "url", ["gs://bucket", "s3://", "s3://key:secret@bucket", "s3://bucket/", "/folder", "s3://b//c"]
    )
    def test_anything_but_a_bucket_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_STORAGE_URL"):
            load_settings({"TETHER_STORAGE_URL": url})

    def test_nobody_goes_past_the_url(self) -> None:
        # With a bucket, bytes kept in that folder would be lost; checkpoints have `settings.checkpoints_dir`.
        root = Path(__file__).parents[3]
        users = {
            path.relative_to(root).as_posix()
            for room in ("app", "worker")
            for path in (root / room).rglob("*.py")
            if "storage_dir" in path.read_text(encoding="utf-8")
        }
        assert users == {"app/settings.py"}


class Broken(io.RawIOBase):
    """A connection that is reset."""

    def readable(self) -> bool:
        """Say that reading can be tried."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fail."""
        raise ConnectionResetError(errno.ECONNRESET, "reset")


class TestFolder:
    def test_what_the_file_system_refuses_is_unavailable(self, tmp_path: Path) -> None:
        storage.path_of(tmp_path, SHA256).mkdir(parents=True)
        with pytest.raises(StorageUnavailable, match=f"the bytes of {SHA256} cannot be reached"):
            storage.discard(tmp_path, SHA256)
        blocked = "0" * 64
        (tmp_path / "00").write_text("a file where a folder belongs")
        for function in (storage.discard, partial(storage.discard_older, age_s=0)):
            with pytest.raises(StorageUnavailable, match=r"cannot be reached .*Not a directory"):
                function(tmp_path, blocked)

    def test_others_cannot_read(self, tmp_path: Path) -> None:
        storage.store_stream(tmp_path / "storage", io.BytesIO(b"private"))
        assert (tmp_path / "storage").stat().st_mode & 0o077 == 0

    def test_full_disk_says_so_and_keeps_nothing(self, tmp_path: Path) -> None:
        # The kernel refuses to let this process write a file beyond 64 KiB, as a full disk would.
        program = (
            "import io, resource, signal, sys; from pathlib import Path; from app import storage;"
            "from app.errors import StorageUnavailable;"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
            "try: storage.store_stream(Path(sys.argv[1]), io.BytesIO(bytes(1_000_000)))\n"
            "except StorageUnavailable as error: print(error.message)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "storage")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "cannot take the file (File too large); nothing was kept" in done.stdout
        assert everything_in(tmp_path) == []

    def test_killed_while_writing_leaves_no_address(self, tmp_path: Path) -> None:
        program = (
            "import io, os, sys; from pathlib import Path; from app import storage\n"
            "class Killer(io.BytesIO):\n"
            "    def read(self, n=-1): return super().read(n) or os._exit(9)\n"
            "storage.store_stream(Path(sys.argv[1]), Killer(bytes(1000)))"
        )
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
        assert done.returncode == 9
        assert [path.name[:10] for path in everything_in(tmp_path)] in ([], [".incoming-"])

    def test_unusable_folder_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "storage").write_text("a file where the folder should be")
        with pytest.raises(StorageUnavailable, match="cannot take the file"):
            storage.store_stream(tmp_path / "storage", io.BytesIO(b"x"))
