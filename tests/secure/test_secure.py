"""``rfss secure``: files for their owner alone, certificates that Dask insists on, passwords that servers insist on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.serve import use_passwords
from flows.secure.certificates import new_authority, new_certificate
from flows.secure.exposure import exposures
from flows.secure.folder import SecureFolder
from rfss_core.errors import ExecutionError, InputError, InputNotFoundError, SettingsError
from rfss_core.settings import ExecutionSettings
from tasks.clusters import gpu_cluster, local_cluster, open_client
from tasks.execution import open_executor

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SecureFolder:
    folder = tmp_path_factory.mktemp("secure") / "keys"
    result = RUNNER.invoke(app, ["secure", str(folder), "--host", "scheduler.ward"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "rfss serve --secure" in result.output
    return SecureFolder(folder)


@pytest.fixture
def with_certificates(made: SecureFolder) -> Iterator[None]:
    """Dask configured as a process is that was started with the folder's variables."""
    variables = {name: value for name, value in made.environment().items() if name.startswith("DASK_")}
    with dask.config.set(dask.config.merge(dask.config.config, dask.config.collect_env(variables))):
        yield


def test_all_files_are_their_owners_alone_and_none_is_overwritten(made: SecureFolder) -> None:
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in made.files)
    assert {path.stat().st_mode & 0o777 for path in (made.folder, made.tls)} == {0o700}
    before = {path: path.read_bytes() for path in made.files}
    with pytest.raises(InputError, match="--renew"):
        made.write(["localhost"])
    assert {path: path.read_bytes() for path in made.files} == before
    # The authority's key goes to no machine that only has to show a certificate.
    assert sorted(path.name for path in made.tls.iterdir()) == ["ca.pem", "dask-key.pem", "dask.pem"]
    passwords = [line.split("=")[1] for line in made.secrets.read_text().splitlines()[1:]]
    client = made.client.read_text()
    servers = ("PREFECT_SERVER", "POSTGRES", "AWS_", "FLASK")
    assert not any(name in client for name in servers)
    assert all(name in made.secrets.read_text() for name in servers)
    assert len([word for word in passwords if len(word) >= 20 and not word.startswith("/")]) >= 6


def test_the_certificate_is_of_its_authority_and_for_its_hosts(made: SecureFolder, tmp_path: Path) -> None:
    copy = SecureFolder(tmp_path / "keys")
    copy.write(["localhost", "127.0.0.1", "scheduler.ward"])
    known = {path: path.read_bytes() for path in copy.files}
    copy.renew(["added.ward"])
    assert {path.name for path in copy.files if path.read_bytes() != known[path]} == {"dask.pem", "dask-key.pem"}
    store = Store([x509.load_pem_x509_certificate(copy.authority.read_bytes())])
    leaf = x509.load_pem_x509_certificate(copy.certificate.read_bytes())
    for host in ("scheduler.ward", "added.ward", "localhost"):
        PolicyBuilder().store(store).build_server_verifier(x509.DNSName(host)).verify(leaf, [])
    PolicyBuilder().store(store).build_client_verifier().verify(leaf, [])
    other = Store([x509.load_pem_x509_certificate(made.authority.read_bytes())])
    with pytest.raises(x509.verification.VerificationError):
        PolicyBuilder().store(other).build_client_verifier().verify(leaf, [])
    with pytest.raises(ValueError, match="do not belong together"):
        new_certificate(new_authority()[0], new_authority()[1], [])
    copy.write(["localhost"], force=True)
    assert not any(path.read_bytes() == known[path] for path in copy.files)
    copy.authority_key.write_bytes(b"torn")
    with pytest.raises(InputError, match="--force"):
        copy.renew([])


def test_the_environment_of_a_folder(made: SecureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made.environment()
    assert found["PREFECT_API_AUTH_STRING"] == found["PREFECT_SERVER_API_AUTH_STRING"]
    assert not any(name.startswith(("AWS_", "POSTGRES")) for name in found)
    assert found["MLFLOW_AUTH_CONFIG_PATH"] == str(made.mlflow)
    with pytest.raises(InputNotFoundError, match="rfss secure"):
        use_passwords(tmp_path / "nothing", tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert not use_passwords(None, tmp_path)
    (tmp_path / "secure").symlink_to(made.folder)
    assert use_passwords(None, tmp_path)
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] in made.mlflow.read_text()
    with pytest.raises(InputError, match="without spaces"):
        SecureFolder(tmp_path / "two words").write([])
    open_to_all = SecureFolder(tmp_path / "open")
    open_to_all.write([])
    open_to_all.secrets.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod"):
        open_to_all.environment()


def test_doctor_says_what_is_exposed(made: SecureFolder, tmp_path: Path) -> None:
    safe = {"PREFECT_API_URL": "http://127.0.0.1:4200/api", "MLFLOW_TRACKING_URI": "sqlite:////tmp/x.db"}
    assert exposures(safe) == []
    assert exposures(made.environment()) == []
    remote = {"PREFECT_API_URL": "http://prefect.ward/api", "MLFLOW_TRACKING_URI": "https://mlflow.ward"}
    assert [note.split()[0] for note in exposures(remote)] == ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"]
    [note] = exposures({**remote, **made.environment()})
    assert "the network reads the password" in note
    torn = tmp_path / "torn.pem"
    torn.write_text("no certificate")
    [note] = exposures({"DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": str(torn)})
    assert "cannot be read" in note


@pytest.mark.usefixtures("with_certificates")
def test_dask_lets_in_nobody_without_a_certificate(tmp_path: Path) -> None:
    with local_cluster(1) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1")
        settings = ExecutionSettings(executor=address)
        with open_executor(settings) as executor:
            assert [result for _, result in executor.map(len, ["a", "bb", "ccc"])] == [1, 2, 3]
        bare = {f"distributed.comm.tls.client.{name}": None for name in ("cert", "key")}
        with dask.config.set(bare), pytest.raises(SettingsError, match="rfss secure"), open_client(settings, 1):
            pass
        stranger = SecureFolder(tmp_path / "stranger")
        stranger.write(["localhost"])
        theirs = {
            "distributed.comm.tls.client.cert": str(stranger.certificate),
            "distributed.comm.tls.client.key": str(stranger.key),
            "distributed.comm.timeouts.connect": "2s",
        }
        with dask.config.set(theirs), pytest.raises(ExecutionError, match="own authority"), open_client(settings, 1):
            pass
        # In clear, as a client that knows nothing of TLS would come.
        plain = ExecutionSettings(executor=address.replace("tls://", "tcp://"))
        clear = {"distributed.comm.require-encryption": False, "distributed.comm.timeouts.connect": "2s"}
        with dask.config.set(clear), pytest.raises(ExecutionError, match="no Dask scheduler"), open_client(plain, 1):
            pass


@pytest.mark.usefixtures("with_certificates")
def test_workers_of_gpus_speak_tls_too() -> None:
    from dask.distributed import Client

    with gpu_cluster(["0"]) as cluster, Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        assert cluster.scheduler_address.startswith("tls://127.0.0.1")
