"""Tables at an address: on object storage, and behind a web server."""

import gzip
import io
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, SettingsError, StoppedEarly, UsageError
from pipeline.producer import csv_files, jsonl_files, open_source
from pipeline.system import remote
from tests.storage import ONLY_S3, Hub, WebServer, certificate_of

ROWS = 600
TEXTS = [f"text {i:04d} says something of its own" for i in range(ROWS)]
SUFFIXES = [".csv", ".jsonl", ".parquet", ".arrow"]


def content(suffix, texts=TEXTS, **options):
    if suffix == ".csv":
        return ("text\n" + "".join(f"{text}\n" for text in texts)).encode()
    if suffix == ".jsonl":
        return "".join(f'{{"text":"{text}"}}\n' for text in texts).encode()
    sink = io.BytesIO()
    if suffix == ".arrow":
        table = pa.table({"text": texts})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
        return sink.getvalue()
    pq.write_table(pa.table({"text": texts}), sink, **options)
    return sink.getvalue()


@pytest.fixture
def bucket(storage, monkeypatch):
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    remote.store_at.cache_clear()
    return storage.bucket()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1, with its key."""
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    file.write_bytes(certificate_of("127.0.0.1"))
    return file


@pytest.fixture
def web(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    remote.store_at.cache_clear()
    server = WebServer(str(certificate))
    yield server
    server.close()


@pytest.fixture
def small_reads(monkeypatch):
    """Read so little at once that a small table takes many requests."""
    monkeypatch.setattr(remote, "READ_BYTES", 512)
    monkeypatch.setattr(csv_files, "READ_BYTES", 512)
    monkeypatch.setattr(csv_files, "BLOCK_ROWS", 20)
    monkeypatch.setattr(jsonl_files, "READ_BYTES", 512)
    monkeypatch.setattr(jsonl_files, "BLOCK_BYTES", 512)


def texts_of(*inputs):
    chunks = open_source(list(inputs)).chunks(0, max_rows=999, max_bytes=1 << 20)
    return [text for chunk in chunks for text in chunk.table["text"].to_pylist()]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv.gz"])
def test_the_output_is_that_of_local_files(label, bucket, tmp_path, suffix):
    body = content(suffix.removesuffix(".gz"))
    if suffix == ".csv.gz":
        body = gzip.compress(body)
    (tmp_path / f"in{suffix}").write_bytes(body)
    address = bucket.put(f"deep/with blank{suffix}", body)
    label(tmp_path / f"in{suffix}", tmp_path / "local.parquet")
    label(address, tmp_path / "remote.parquet")
    outputs = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("local", "remote")]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("key", ["a#b.csv", "a?b/c.csv", "a%20b.csv", "50% off/\u00fc \u4e2d.csv"])
def test_a_key_is_taken_as_it_is(bucket, key):
    bucket.put(key, content(".csv"))
    assert texts_of(f"{bucket.url}/{key}") == TEXTS
    assert texts_of(f"{bucket.url}/{key[:2]}*/*.csv" if "/" in key else f"{bucket.url}/*") == TEXTS


def test_the_address_of_a_web_server_is_quoted(web):
    web.files["a%20b.csv"] = content(".csv")
    assert texts_of(f"{web.url}/a%20b.csv") == TEXTS


def test_folders_and_globs_name_what_they_name_on_disk(bucket, tmp_path, monkeypatch):
    objects = [
        "t/country=DE/b.parquet",
        "t/country=DE/a.parquet",
        "t/country=FR/a.parquet",
        "t/_hidden/a.parquet",
        "t/.x/a.parquet",
        "t/old.run/parts/a.parquet",
        "t/_SUCCESS",
        "t/notes.txt",
        "other/country=IT/a.parquet",
    ]
    for key in objects:
        body = content(".parquet", [key])
        bucket.put(key, body)
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(body)
    monkeypatch.chdir(tmp_path)
    for name in ("t", "t/", "t/*", "t/*/a.parquet", "*/country=??/a.parquet", "**/b.parquet"):
        local, far = open_source([name]), open_source([f"{bucket.url}/{name}"])
        names = [file.path.removeprefix(f"{bucket.url}/") for file in far.input.files]
        assert names == [os.path.normpath(file.path) for file in local.input.files], name
        assert [file.keys for file in far.input.files] == [file.keys for file in local.input.files]
        assert far.input.schema == local.input.schema


def test_what_is_wrong_is_said_before_anything_is_sent(label, bucket, server, tmp_path):
    bucket.put("delta/_delta_log/0.json", b"{}")
    bucket.put("delta/a.parquet", content(".parquet"))
    bucket.put("notes.txt", b"")
    table = bucket.put("t/a.csv", content(".csv"))
    bucket.put("empty/a.parquet", b"")
    for name, words in (
        ("none.csv", "none.csv does not exist"),
        ("none/", "holds no table"),
        ("notes.txt", "holds no table"),
        ("delta", "is a table of Delta"),
        ("empty/a.parquet", "is empty"),
    ):
        with pytest.raises(InputError, match=words):
            label(f"{bucket.url}/{name}", tmp_path / "out.parquet")
    with pytest.raises(InputError, match="does not exist"):
        label(f"{bucket.url}-missing/a.csv", tmp_path / "out.parquet")
    with pytest.raises(InputError, match="in the input twice"):
        label(table, tmp_path / "out.parquet", input=(table, f"{bucket.url}/t/*"))
    assert not server.requests
    assert not (tmp_path / "out.parquet.run").exists()


@pytest.mark.parametrize("address", ["ftp://host/a.csv", "s3a://bucket/a.csv", "dbfs:/a.csv"])
def test_an_address_of_another_kind_is_refused(label, tmp_path, address):
    with pytest.raises(InputError, match="an address of a kind that cannot be read"):
        label(address, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    "address",
    [
        "https://host/a.csv?X-Amz-Signature=hidden",
        "https://user:hidden@host/a.csv",
        "https://hidden@host/a.csv?a=1",
        "HTTPS://user:hidden@host/a.csv",
        "https://host?sig=hidden/x.csv",
        "https://host?sig=hidden",
        "http://user:pa/hidden@host",
        "http://user:pa/hidden@host/x.csv",
        "http://user:hidden?x@host/x.csv",
        "abfs://c@account.dfs.core.windows.net/x.csv?sv=1&sig=hidden",
        "abfs://user:hidden@account.dfs.core.windows.net/x.csv",
        "s3://bucket/x.csv?X-Amz-Algorithm=A&X-Amz-Signature=hidden",
        "gs://bucket/x.csv?X-Goog-Signature=hidden",
        "s3://bucket?X-Amz-Signature=hidden",
        "s3://key:hidden@bucket/x.csv",
        "S3://key:hid/hidden@bucket/x.csv",
        "hf://user:hidden@datasets/owner/name/x.csv",
        "ftp://user:hidden@host/x.csv",
        "ftp://user:pa/hidden@host/x.csv?hidden",
    ],
)
def test_no_secret_is_recorded_with_an_address(label, tmp_path, address):
    with pytest.raises(InputError) as refused:
        label(address, tmp_path / "out.parquet")
    assert "hidden" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3:///x.csv",
        "s3://b*/x.csv",
        "hf://x.csv",
        "hf://datasets/x.csv",
        "https:///x.csv",
        "https://[::1/x.csv",
        "gs://",
        "abfs://",
        "https://",
        "hf://",
    ],
)
def test_an_address_that_is_none_is_refused(bucket, label, tmp_path, address):
    with pytest.raises(InputError) as refused:
        label(address, tmp_path / "out.parquet")
    assert address in str(refused.value)


def test_without_obstore_it_says_what_to_install(label, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "obstore", None)
    remote.store_at.cache_clear()
    for name in ("a.csv", "*.csv", "folder"):
        with pytest.raises(SettingsError, match=r"needs obstore.*\[cloud\]"):
            label(f"s3://bucket/{name}", tmp_path / "out.parquet")


@pytest.mark.usefixtures("small_chunks", "small_reads")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("change", ["written again", "deleted"])
def test_an_object_that_changes_in_the_middle(label, server, bucket, tmp_path, suffix, change):
    key, output = f"in{suffix}", tmp_path / "out.parquet"
    kept = content(suffix, compression="none", row_group_size=20) if suffix == ".parquet" else None
    kept = kept or content(suffix)
    address = bucket.put(key, kept)
    before = remote.facts(address)

    def script(request):
        if request.number == 2 and change == "deleted":
            bucket.delete(key)
        elif request.number == 2:
            bucket.put(key, kept.replace(b"something", b"otherwise"))

    server.script = script
    with pytest.raises(StoppedEarly, match="changed while it was being read"):
        label(address, output, batch_size=8, concurrency=1)
    sent = len(server.requests)
    with pytest.raises(UsageError):
        label(address, output)
    assert len(server.requests) == sent
    assert not [text for text in server.texts if "otherwise" in text]

    bucket.put(key, kept)
    # An ETag of Azure is of the upload, and of a Parquet or Arrow file not more is known.
    other = remote.facts(address) != before and suffix in (".parquet", ".arrow")
    assert label(address, output, restart=other)["state"] == "complete"
    assert not server.sent_twice()
    assert pq.read_table(output)["text"].to_pylist() == TEXTS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_is_read_in_ranges(web, suffix, monkeypatch):
    """Bounded in memory, and of a Parquet file the footer first."""
    monkeypatch.setattr(remote, "READ_BYTES", 1 << 10)
    texts = [f"{i} " + "word " * 50 for i in range(2_000)]
    web.files[f"in{suffix}"] = content(suffix, texts)
    longest = []
    read = remote.RemoteFile._fetch

    def fetch(self, length):
        read(self, length)
        longest.append(len(self._held))

    monkeypatch.setattr(remote.RemoteFile, "_fetch", fetch)
    assert texts_of(f"{web.url}/in{suffix}") == texts
    assert max(longest) <= 1 << 20
    assert len(longest) > 4


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("conditions", [True, False], ids=["If-Match", "no If-Match"])
def test_a_file_that_changes_between_two_reads_is_never_mixed(web, suffix, conditions):
    old, new = content(suffix), content(suffix, [text.upper() for text in TEXTS])
    web.conditions, web.files[f"in{suffix}"] = conditions, old
    source = open_source([f"{web.url}/in{suffix}"])
    gets = 0

    def change():
        nonlocal gets
        gets += 1
        if gets == 3:
            web.files[f"in{suffix}"] = new

    web.on_get = change
    found = []

    def read():
        for chunk in source.chunks(0, max_rows=50, max_bytes=1 << 20):
            found.extend(chunk.table["text"].to_pylist())

    with pytest.raises(InputError, match="changed while it was being read"):
        read()
    assert found == TEXTS[: len(found)]


def test_a_server_without_etags_is_read(web):
    """A change is told by size and time alone then."""
    web.etags, web.files["in.csv"] = False, content(".csv")
    assert texts_of(f"{web.url}/in.csv") == TEXTS
    assert open_source([f"{web.url}/in.csv"]).input.files[0].etag is None


def test_a_server_without_ranges_is_refused(web):
    web.ranges, web.files["in.parquet"] = False, content(".parquet")
    with pytest.raises(InputError, match="cannot be read"):
        texts_of(f"{web.url}/in.parquet")


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.close()


@pytest.mark.parametrize("name", ["data/a.parquet", "data/*.parquet", "@main/data"])
def test_a_dataset_of_the_hub_is_read(cli, hub, server, tmp_path, name):
    body = content(".parquet")
    hub.files = {"data/a.parquet": body, "README.md": b"# Words"}
    (tmp_path / "in.parquet").write_bytes(body)
    address = f"hf://datasets/owner/data{'' if name[0] == '@' else '/'}{name}"
    for source, output in (("in.parquet", "local.parquet"), (address, "remote.parquet")):
        done = cli("run", source, "-o", output, "--endpoint", server.url)
        assert done.code == 0, done.stderr
    outputs = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("local", "remote")]
    assert outputs[0] == outputs[1]


def test_what_is_wrong_with_a_dataset_is_said(cli, hub, server):
    hub.files = {"data/a.parquet": content(".parquet")}
    command = ("-o", "out.parquet", "--endpoint", server.url)
    done = cli("run", "hf://datasets/owner/data/data/b.parquet", *command)
    assert done.code == 2
    assert "data/b.parquet does not exist" in done.stderr
    hub.token = "secret"
    done = cli("run", "hf://datasets/owner/data/data/a.parquet", *command)
    assert done.code == 2
    assert "permission denied" in done.stderr
    done = cli("run", "hf://datasets/owner/data/data/a.parquet", *command, HF_TOKEN="secret")
    assert done.code == 0, done.stderr


def test_a_dataset_that_changes_is_refused_on_resume(cli, hub, server, tmp_path):
    hub.files = {"a.csv": content(".csv")}
    command = (
        "run",
        "hf://datasets/owner/data/a.csv",
        "-o",
        "out.parquet",
        "--endpoint",
        server.url,
    )
    done = cli(*command, "--max-requests", "3", "--batch-size", "8")
    assert done.code == 75, done.stderr
    hub.files = {"a.csv": content(".csv", [text.upper() for text in TEXTS])}
    sent = len(server.requests)
    done = cli(*command)
    assert done.code == 2
    assert len(server.requests) == sent


def paths_of(*inputs):
    return [file.path for file in open_source(list(inputs)).input.files]


@pytest.mark.parametrize("place", ["here", "there"])
def test_a_name_is_that_of_an_object_or_folder_before_it_is_a_glob(
    bucket, tmp_path, monkeypatch, place
):
    for key in ("x[1].csv", "x1.csv", "d[1]/k=1/a.csv", "d1/k=2/a.csv", "u.csv/part-0.csv"):
        bucket.put(key, content(".csv"))
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content(".csv"))
    monkeypatch.chdir(tmp_path)
    root = "." if place == "here" else bucket.url
    for name, found in (
        ("x[1].csv", "x[1].csv"),
        ("x[12].csv", "x1.csv"),
        ("d[1]", "d[1]/k=1/a.csv"),
        ("d[1]/", "d[1]/k=1/a.csv"),
        ("d[12]", "d1/k=2/a.csv"),
        ("u.csv", "u.csv/part-0.csv"),
        ("u.csv/", "u.csv/part-0.csv"),
    ):
        (file,) = open_source([f"{root}/{name}"]).input.files
        assert os.path.normpath(file.path) == os.path.normpath(f"{root}/{found}")
        assert len(file.keys) == ("k=" in found), name


@pytest.mark.parametrize("name", ["/a.csv", "z//a.csv", "z//", "z//*", "/"])
def test_one_object_has_one_name(bucket, name):
    """The library takes `//` at the beginning for `/`."""
    bucket.put("a.csv", content(".csv"))
    with pytest.raises(InputError, match="two slashes in a row"):
        paths_of(f"{bucket.url}/{name}")


def test_case_and_quoting_make_no_other_object(bucket, web):
    web.files["%61.csv"] = web.files["a.csv"] = content(".csv")
    scheme, _, name = bucket.url.partition(":")
    for one, other in (
        (bucket.put("a.csv", content(".csv")), f"{scheme.upper()}:{name}/a.csv"),
        (f"{web.url}/a.csv", f"{web.url}/%61.csv"),
    ):
        with pytest.raises(InputError, match="in the input twice"):
            paths_of(one, other)
    assert paths_of(f"{scheme.upper()}:{name}/a.csv") == [f"{bucket.url}/a.csv"]


@pytest.mark.usefixtures("small_reads")
def test_a_web_server_without_etags_that_changes_is_never_mixed(web):
    web.etags, web.files["in.csv"] = False, content(".csv")
    source = open_source([f"{web.url}/in.csv"])

    def change():
        web.files["in.csv"] = content(".csv").upper().replace(b"TEXT\n", b"text\n", 1)
        web.modified = 1_000

    found = []

    def read():
        for chunk in source.chunks(0, max_rows=50, max_bytes=1 << 20):
            found.extend(chunk.table["text"].to_pylist())
            web.on_get = change

    with pytest.raises(InputError, match="changed while it was being read"):
        read()
    assert found
    assert found == TEXTS[: len(found)]


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv.gz", ".csv.zst"])
def test_a_weak_etag_is_no_condition(web, suffix):
    """A server that goes by the standard takes no If-Match with one."""
    body = content(suffix if suffix in SUFFIXES else ".csv")
    packed = {".csv.gz": gzip.compress, ".csv.zst": lambda b: pa.compress(b, "zstd", asbytes=True)}
    body = packed.get(suffix, bytes)(body)
    web.weak, web.files[f"in{suffix}"] = True, body
    source = open_source([f"{web.url}/in{suffix}"])
    assert not source.input.files[0].sha256.startswith("etag")

    def change():
        web.files[f"in{suffix}"] = body[::-1]

    web.on_get = change
    with pytest.raises(InputError, match="changed while it was being read"):
        list(source.chunks(0, max_rows=50, max_bytes=1 << 20))


@pytest.mark.usefixtures("small_chunks", "small_reads")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_storage_that_refuses_in_the_middle_is_no_change(label, server, web, tmp_path, suffix):
    """As when credentials expire."""
    kept = content(suffix, compression="none", row_group_size=20) if suffix == ".parquet" else None
    web.files[f"in{suffix}"] = kept or content(suffix)
    address, output = f"{web.url}/in{suffix}", tmp_path / "out.parquet"

    def script(request):
        web.refuses = request.number >= 2

    server.script = script
    with pytest.raises(StoppedEarly, match="permission denied"):
        label(address, output, batch_size=8, concurrency=1)
    sent = len(server.requests)
    with pytest.raises(InputError, match="permission denied"):
        label(address, output)
    assert len(server.requests) == sent

    server.script, web.refuses = lambda _: None, False
    assert label(address, output)["state"] == "complete"
    assert pq.read_table(output)["text"].to_pylist() == TEXTS


@pytest.mark.parametrize("suffix", SUFFIXES)
@ONLY_S3
def test_a_folder_is_read_without_asking_for_each_object(s3_server, bucket, suffix):
    """The list tells what they are, and each read that they still are."""
    for i in range(20):
        bucket.put(f"t/{i:02d}{suffix}", content(suffix, ["a", "b"]))
    s3_server.methods.clear()
    assert texts_of(f"{bucket.url}/t") == ["a", "b"] * 20
    assert s3_server.methods["HEAD"] == 0
    assert s3_server.methods["GET"] > 20
    assert texts_of(f"{bucket.url}/t/00{suffix}") == ["a", "b"]
    assert s3_server.methods["HEAD"] == 1


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
def test_without_credentials_it_says_where_they_are_looked_for(hub, monkeypatch, scheme):
    """The address where a machine's role is asked for says nothing to anybody."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", hub.url)
    monkeypatch.setenv("GCE_METADATA_HOST", hub.url.removeprefix("http://"))
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{hub.url}/metadata/identity/oauth2/token")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    remote.store_at.cache_clear()
    place = "c@account.dfs.core.windows.net" if scheme == "abfs" else "bucket"
    with pytest.raises(
        InputError, match=r"no credentials were found: neither [A-Z_]+ .*in the env"
    ):
        paths_of(f"{scheme}://{place}/a.csv")
    remote.store_at.cache_clear()
